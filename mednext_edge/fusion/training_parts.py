"""Drop what only training needs: deep-supervision heads and the checkpointing dummy."""

from __future__ import annotations

import re

from torch import nn

from mednext_edge.fusion.rewrite import Rewrite
from mednext_edge.models.mednext import MedNeXt


def drop_training_parts(net: nn.Module) -> int:
    """Remove `out_1..` and `dummy_tensor`; the network returns one tensor from then on."""
    if not isinstance(net, MedNeXt):
        return 0
    heads = [name for name, _ in net.named_children() if re.fullmatch(r"out_[1-9]\d*", name)]
    for name in heads:
        delattr(net, name)
    net.do_ds = net.checkpoint_gradients = False
    net.config = net.config.without_deep_supervision()
    dummy = hasattr(net, "dummy_tensor")
    if dummy:
        del net.dummy_tensor
    return len(heads) + dummy


REWRITE = Rewrite(drop_training_parts, "deep-supervision heads and dummy parameter removed")
