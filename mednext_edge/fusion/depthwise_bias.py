"""The bias of a depthwise convolution in front of a per-channel norm: the norm subtracts it again."""

from __future__ import annotations

from torch import nn

from mednext_edge.fusion.instance_norm import is_per_channel
from mednext_edge.fusion.rewrite import Rewrite
from mednext_edge.models.mednext import Block


def drop_depthwise_bias(net: nn.Module) -> int:
    """Remove `conv1.bias` where the norm behind it averages each channel apart (not so for LayerNorm)."""
    count = 0
    for block in net.modules():
        if isinstance(block, Block) and is_per_channel(block.norm) and block.conv1.bias is not None:
            block.conv1.register_parameter("bias", None)
            count += 1
    return count


REWRITE = Rewrite(drop_depthwise_bias, "depthwise biases that the norm cancels removed")
