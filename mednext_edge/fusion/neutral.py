"""The training form with its numbers where the deploy form has them.

Fusion folds the scale and shift of every norm into a convolution beside it, where padding allows, and drops depthwise
biases that a norm takes out again. Weights that are to be learnt as the engine rounds them must be those of the deploy
form already. Here the modules, and so the names in the state_dict, remain; what fusion would fold away is neutral and
no longer learnt. BatchNorms keep their statistics from here on, in training too.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from mednext_edge.fusion.batch_norm import ChannelAffine, Conv, Norm
from mednext_edge.fusion.instance_norm import is_per_channel
from mednext_edge.fusion.norm_affine import expand_by_affine
from mednext_edge.fusion.norm_ahead import fold_norm_ahead
from mednext_edge.fusion.norm_behind import fold_norm_behind
from mednext_edge.fusion.norm_left import use_channel_affine
from mednext_edge.models.mednext import Block


class FixedNorm(Norm):
    """A BatchNorm that always computes as once training is over: [N, C, H, W] -> the same."""

    def train(self, mode: bool = True) -> FixedNorm:
        super().train(False)
        return self


@torch.no_grad()
def neutralize(net: nn.Module) -> None:
    """The same function as in eval mode, in place; fusing it changes no weight of a convolution any more."""
    for block in net.modules():
        if not isinstance(block, Block):
            continue
        norm = expand_by_affine(block)
        if norm is not None:
            _freeze(norm.weight, 1.0)
            _freeze(norm.bias, 0.0)
        if is_per_channel(block.norm) and block.conv1.bias is not None:
            _freeze(block.conv1.bias, 0.0)
    folded = copy.deepcopy(net)
    for fold in (fold_norm_behind, fold_norm_ahead, use_channel_affine):
        fold(folded)
    for name, module in list(net.named_modules()):
        twin = folded.get_submodule(name)
        if isinstance(module, Norm):
            net.set_submodule(name, _fixed(module, twin))
        elif isinstance(module, nn.GroupNorm) and isinstance(twin, nn.GroupNorm) and module.affine and not twin.affine:
            _freeze(module.weight, 1.0)
            _freeze(module.bias, 0.0)
        elif isinstance(module, Conv):
            assert isinstance(twin, Conv)
            assert (module.bias is None) == (twin.bias is None), f"{name} has no place for the shift of a norm"
            module.load_state_dict(twin.state_dict())


def _fixed(norm: Norm, twin: nn.Module) -> FixedNorm:
    """What folding has left of a BatchNorm: the scale and shift of `twin`, or nothing."""
    fixed = FixedNorm(norm.num_features, norm.eps).to(norm.weight)
    assert fixed.running_mean is not None and fixed.running_var is not None
    fixed.running_mean.zero_()
    fixed.running_var.fill_(1 - norm.eps)
    if isinstance(twin, ChannelAffine):
        fixed.weight.copy_(twin.scale)
    else:
        _freeze(fixed.weight, 1.0)
    if isinstance(twin, ChannelAffine) and twin.shift is not None:
        fixed.bias.copy_(twin.shift)
    else:
        _freeze(fixed.bias, 0.0)
    return fixed.eval()


def _freeze(parameter: object, value: float) -> None:
    assert isinstance(parameter, nn.Parameter)
    parameter.fill_(value)
    parameter.requires_grad_(False)
