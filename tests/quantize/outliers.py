"""The same function with outlier channels: easy in float32, hard in INT8."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from mednext_edge.models.loaded import LoadedModel
from mednext_edge.models.mednext import Block, MedNeXt


def with_outliers(model: LoadedModel, channels: tuple[int, ...] = (0,), factor: float = 100.0) -> LoadedModel:
    """A MedNeXt whose residual stream at full resolution carries some channels `factor` times as large.

    Everything that writes into the stream (stem, compressing convolutions, the last up block) is scaled, and everything
    that reads it unscaled: the norms behind the depthwise convolutions take the factor out by themselves, but for eps.

    Args:
        model: in training form, with residual connections.
        channels: of the stream.
        factor: how many times as large.
    """
    net = copy.deepcopy(model.net)
    assert isinstance(net, MedNeXt)
    last = net.get_submodule("up_0")
    blocks = [block for name in ("enc_block_0", "dec_block_0") for block in net.get_submodule(name).children()]
    writers = [net.stem, *(block.conv3 for block in blocks if isinstance(block, Block)), last.conv3, last.res_conv]
    with torch.no_grad():
        for conv in writers:
            transposed = isinstance(conv, torch.nn.ConvTranspose3d)
            for c in channels:
                (conv.weight[:, c] if transposed else conv.weight[c]).mul_(factor)
                conv.bias[c].mul_(factor)
        net.get_submodule("down_0").res_conv.weight[:, list(channels)] /= factor
        head = net.get_submodule("out_0").conv_out
        head.weight[list(channels)] /= factor  # a transposed convolution: input channels come first
    return replace(model, net=net)
