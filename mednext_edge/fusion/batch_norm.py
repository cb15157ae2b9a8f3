"""BatchNorm as what it is once training is over: a scale and a shift of each channel.

y = scale * x + shift,    scale = weight / sqrt(running_var + eps),    shift = bias - running_mean * scale
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = nn.BatchNorm2d
Conv = nn.Conv2d


class ChannelAffine(nn.Module):
    """scale * x + shift, or scale * x without a shift: [N, C, H, W] -> the same.

    With a shift it is a BatchNorm of mean 0 and variance 1, which every exporter and engine knows as one operator.
    """

    def __init__(self, scale: Tensor, shift: Tensor | None) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)
        self.shift = None if shift is None else nn.Parameter(shift)
        self.register_buffer("zero", torch.zeros_like(scale), persistent=False)
        self.register_buffer("one", torch.ones_like(scale), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.shift is None:
            return x * self.scale.view(-1, 1, 1)
        zero, one = self.get_buffer("zero"), self.get_buffer("one")
        return F.batch_norm(x, zero, one, self.scale, self.shift, eps=0.0)


def affine_of(norm: Norm) -> tuple[Tensor, Tensor]:
    """Scale and shift [C] in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def neighbours(net: nn.Module) -> Iterator[tuple[nn.Sequential, int, int]]:
    """Every two modules of a sequence that follow each other, without those that a rewrite has emptied."""
    for sequence in net.modules():
        if isinstance(sequence, nn.Sequential) and type(sequence).forward is nn.Sequential.forward:
            there = [i for i, module in enumerate(sequence) if not isinstance(module, nn.Identity)]
            for first, second in itertools.pairwise(there):
                yield sequence, first, second


def add_to_bias(conv: Conv, shift: Tensor) -> None:
    """Add [out] to the bias of a convolution, which gets one where it had none."""
    if conv.bias is None:
        conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
    conv.bias.copy_(conv.bias.double() + shift)
