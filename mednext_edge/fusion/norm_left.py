"""What is left of BatchNorm where no convolution can take it: one scale and one shift a channel.

Padding forbids more (see `fusion.norm_ahead`). Two numbers a channel instead of four, and none of them a small
variance, which float16 would round to nothing.
"""

from __future__ import annotations

from torch import nn

from mednext_edge.fusion.batch_norm import ChannelAffine, Norm, affine_of
from mednext_edge.fusion.rewrite import Rewrite


def use_channel_affine(net: nn.Module) -> int:
    """Replace every BatchNorm that is still there by its scale and shift."""
    places = [name for name, module in net.named_modules() if isinstance(module, Norm)]
    for name in places:
        norm = net.get_submodule(name)
        assert isinstance(norm, Norm)
        scale, shift = (part.to(norm.weight) for part in affine_of(norm))
        parent, _, own = name.rpartition(".")
        setattr(net.get_submodule(parent), own, ChannelAffine(scale.detach(), shift.detach()))
    return len(places)


REWRITE = Rewrite(use_channel_affine, "BatchNorm in front of padding as scale and shift")
