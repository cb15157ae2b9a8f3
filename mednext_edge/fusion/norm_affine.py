"""The scale and shift of a norm belong to the 1x1x1 convolution that follows it.

W (g * x + b) + c  =  (W diag(g)) x + (W b + c)
"""

from __future__ import annotations

import torch
from torch import nn

from mednext_edge.fusion.rewrite import Rewrite
from mednext_edge.models.mednext import Block, ChannelLayerNorm


def fold_norm_affine(net: nn.Module) -> int:
    """Fold scale and shift of every block's norm into its expansion convolution `conv2`."""
    count = 0
    for block in net.modules():
        norm = expand_by_affine(block) if isinstance(block, Block) else None
        if norm is None:
            continue
        norm.weight = norm.bias = None
        if isinstance(norm, nn.GroupNorm):
            norm.affine = False
        count += 1
    return count


def expand_by_affine(block: Block) -> nn.GroupNorm | ChannelLayerNorm | None:
    """Put scale and shift of a block's norm into its expansion convolution; the norm, None where it has neither."""
    norm, conv = block.norm, block.conv2
    if getattr(norm, "weight", None) is None:
        return None
    assert isinstance(norm, (nn.GroupNorm, ChannelLayerNorm))
    assert norm.weight is not None and norm.bias is not None and conv.bias is not None
    with torch.no_grad():
        matrix = conv.weight.flatten(1)  # [R*C, C]
        conv.bias += matrix @ norm.bias
        conv.weight.copy_((matrix * norm.weight).view_as(conv.weight))
    return norm


REWRITE = Rewrite(fold_norm_affine, "norm scale and shift folded into the expansion convolution")
