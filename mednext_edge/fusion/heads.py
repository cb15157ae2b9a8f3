"""A transposed convolution with kernel 1 and stride 1 is a plain one with the channel axes swapped."""

from __future__ import annotations

import torch
from torch import nn

from mednext_edge.fusion.rewrite import Rewrite
from mednext_edge.models.mednext import CONV, Head


def plain_heads(net: nn.Module) -> int:
    """Replace the 1x1x1 transposed convolution of every head by a 1x1x1 convolution."""
    heads = [m for m in net.modules() if isinstance(m, Head) and isinstance(m.conv_out, TRANSPOSED)]
    for head in heads:
        old = head.conv_out
        assert isinstance(old, TRANSPOSED)
        new = CONV[old.weight.dim() - 2](old.in_channels, old.out_channels, 1).to(old.weight)
        with torch.no_grad():
            new.weight.copy_(old.weight.transpose(0, 1))
            assert old.bias is not None and new.bias is not None
            new.bias.copy_(old.bias)
        head.conv_out = new
    return len(heads)


TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)

REWRITE = Rewrite(plain_heads, "transposed 1x1x1 heads as plain convolutions")
