"""The scale and shift of a norm in front of a 1x1 convolution belong to it.

W (g * x + b) + c  =  (W diag(g)) x + (W b + c)

CMUNeXt has its BatchNorm behind the GELU, so that the convolution in front of it cannot take it. One with padding
behind it cannot either: its zeros stand for "no pixel" behind the shift, so that shifted borders would differ.
Of a BatchNorm inside a residual sum the shift alone goes ahead, W (g * x + b + y) + c; the scale stays.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mednext_edge.fusion.batch_norm import ChannelAffine, Conv, Norm, add_to_bias, affine_of, neighbours
from mednext_edge.fusion.rewrite import Rewrite
from mednext_edge.models.cmunext import CMUNeXt, Residual


def fold_norm_ahead(net: nn.Module) -> int:
    """Fold every BatchNorm, and every affine of a GroupNorm, that a 1x1 convolution follows into that convolution."""
    count = 0
    for sequence, i, j in list(neighbours(net)):
        conv = sequence[j]
        if not _is_pointwise(conv):
            continue
        assert isinstance(conv, Conv)
        norm = sequence[i]
        if isinstance(norm, Norm):
            _fold(*affine_of(norm), conv)
            sequence[i] = nn.Identity()
            count += 1
        elif isinstance(norm, nn.GroupNorm) and norm.affine:
            _fold(norm.weight.double(), norm.bias.double(), conv)
            norm.weight = norm.bias = None  # type: ignore[assignment]
            norm.affine = False
            count += 1
        elif isinstance(norm, Residual) and isinstance(norm.fn, nn.Sequential) and isinstance(norm.fn[-1], Norm):
            scale, shift = affine_of(norm.fn[-1])
            with torch.no_grad():
                add_to_bias(conv, conv.weight.double().flatten(1) @ shift)
            norm.fn[-1] = ChannelAffine(scale.to(conv.weight), None)
            count += 1
    for whole in net.modules():
        if isinstance(whole, CMUNeXt):
            last = whole.get_submodule("Up_conv2").get_submodule("conv")
            assert isinstance(last, nn.Sequential)
            if isinstance(last[-1], Norm):
                _fold(*affine_of(last[-1]), whole.Conv_1x1)
                last[-1] = nn.Identity()
                count += 1
    return count


def _is_pointwise(conv: nn.Module) -> bool:
    return isinstance(conv, Conv) and conv.kernel_size == (1, 1) and conv.groups == 1 and conv.padding == (0, 0)


def _fold(scale: Tensor, shift: Tensor, conv: Conv) -> None:
    matrix = conv.weight.double().flatten(1)  # [out, in]
    with torch.no_grad():
        add_to_bias(conv, matrix @ shift)
        conv.weight.copy_((matrix * scale).view_as(conv.weight))


REWRITE = Rewrite(fold_norm_ahead, "BatchNorm and scales of GroupNorm folded into the 1x1 convolution behind them")
