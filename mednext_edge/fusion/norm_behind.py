"""A BatchNorm right behind a convolution belongs to it.

g * (W x + c) + b  =  (diag(g) W) x + (g * c + b)
"""

from __future__ import annotations

import torch
from torch import nn

from mednext_edge.fusion.batch_norm import Conv, Norm, affine_of, neighbours
from mednext_edge.fusion.rewrite import Rewrite


def fold_norm_behind(net: nn.Module) -> int:
    """Fold every BatchNorm of a sequence into the convolution in front of it."""
    count = 0
    for sequence, i, j in list(neighbours(net)):
        conv, norm = sequence[i], sequence[j]
        if isinstance(conv, Conv) and isinstance(norm, Norm):
            scale, shift = affine_of(norm)
            with torch.no_grad():
                conv.weight.copy_(conv.weight.double() * scale.view(-1, 1, 1, 1))
                bias = 0 if conv.bias is None else conv.bias.double()
                conv.bias = nn.Parameter((bias * scale + shift).to(conv.weight))
            sequence[j] = nn.Identity()
            count += 1
    return count


REWRITE = Rewrite(fold_norm_behind, "BatchNorm folded into the convolution in front of it")
