"""The training form with its numbers where the deploy form has them.

Fusion folds the scale and shift of every norm into the next convolution and drops depthwise biases that a norm takes
out again. Weights that are to be learnt as the engine rounds them must be those of the deploy form already. Here the
modules, and so the names in the state_dict, remain; what fusion would fold away is neutral and no longer learnt.
"""

from __future__ import annotations

import torch
from torch import nn

from mednext_edge.fusion.instance_norm import is_per_channel
from mednext_edge.fusion.norm_affine import expand_by_affine
from mednext_edge.models.mednext import Block


def neutralize(net: nn.Module) -> None:
    """The same function of the input, in place; fusing it changes no weight of a convolution any more."""
    for block in net.modules():
        if not isinstance(block, Block):
            continue
        norm = expand_by_affine(block)
        if norm is not None:
            _freeze(norm.weight, 1.0)
            _freeze(norm.bias, 0.0)
        if is_per_channel(block.norm) and block.conv1.bias is not None:
            _freeze(block.conv1.bias, 0.0)


def _freeze(parameter: object, value: float) -> None:
    assert isinstance(parameter, nn.Parameter)
    with torch.no_grad():
        parameter.fill_(value)
    parameter.requires_grad_(False)
