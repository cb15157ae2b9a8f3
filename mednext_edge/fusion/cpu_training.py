"""The form in which a network trains on a CPU: channels-last, its depthwise convolutions and norms by our kernels.

The modules take the place of PyTorch's with the same parameters and names, so that states fit both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mednext_edge.fusion.depthwise import use_depthwise
from mednext_edge.fusion.instance_norm import is_per_channel
from mednext_edge.models.mednext import Block, MedNeXt
from mednext_edge.ops.channel_norm import channel_norm


class ChannelNorm(nn.Module):
    """A GroupNorm with a group for each channel, see `ops.channel_norm`: [N, C, D, H, W] -> the same."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return channel_norm(x, self.weight, self.bias, self.eps)


def use_cpu_training(net: nn.Module) -> int:
    """Replace, in place, what our CPU kernels compute; how many 3-D blocks that are. All else stays as it is."""
    if not (count := use_depthwise(net, dims=(3,))):
        return 0
    for block in net.modules():
        if isinstance(block, Block) and isinstance(block.norm, nn.GroupNorm) and is_per_channel(block.norm):
            block.norm = ChannelNorm(block.norm).train(block.norm.training)
    for part in net.modules():
        if isinstance(part, MedNeXt):
            # PyTorch's convolutions answer in the layout of their input, of which one channel says nothing.
            part.stem.register_forward_hook(_channels_last)
    return count


def _channels_last(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.contiguous(memory_format=torch.channels_last_3d)
