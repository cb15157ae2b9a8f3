"""The modules that blocks of the 2-D MedNeXt are made of, each with an alternative: [N, C, H, W] -> the same.

After published modules of the same kind; see each. A new one is an entry in its registry.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mednext_edge.models.cmunext import Residual
from mednext_edge.registry import Registry

Module = Callable[[int], nn.Module]
"""Number of channels -> module."""

ATTENTION: Registry[Module] = Registry("attention module")
"""Of the whole block's input; they add it themselves."""
SPATIAL: Registry[Module] = Registry("spatial encoding module")
FEED_FORWARD: Registry[Module] = Registry("feed-forward module")


def _depthwise(channels: int, height: int, width: int) -> nn.Conv2d:
    padding = (height // 2, width // 2)
    return nn.Conv2d(channels, channels, (height, width), padding=padding, groups=channels)


class ImageNorm(nn.GroupNorm):
    """Over all channels and pixels of an image (GroupNorm of one group); statistics of float16 in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float16:
            return super().forward(x)
        weight, bias = (None if part is None else part.float() for part in (self.weight, self.bias))
        return F.group_norm(x.float(), 1, weight, bias, self.eps).half()


class LinearAttention(nn.Module):
    """Separable self-attention and an MLP, of cost linear in the pixels (MobileViTv2, arXiv 2206.02680).

    One 1x1 convolution gives q (one channel), k and v (C each). The softmax of q over all pixels weights k into one
    vector of context, which scales ReLU(v); a 1x1 convolution follows. Then norm, 1x1 to 2C, SiLU, 1x1. Both are added
    to what they are given.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.qkv = nn.Sequential(ImageNorm(channels), nn.Conv2d(channels, 1 + 2 * channels, 1))
        self.out = nn.Conv2d(channels, channels, 1)
        self.mlp = nn.Sequential(
            ImageNorm(channels), nn.Conv2d(channels, 2 * channels, 1), nn.SiLU(), nn.Conv2d(2 * channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = torch.split(self.qkv(x), [1, self.channels, self.channels], dim=1)
        if x.dtype == torch.float16:  # sums over all pixels lose the small shares in half precision
            q, k = q.float(), k.float()
        share = q.flatten(2).softmax(-1)  # [N, 1, pixels]
        context = (k.flatten(2) * share).sum(-1)[..., None, None].to(x.dtype)  # [N, C, 1, 1]
        x = x + self.out(F.relu(v) * context)
        out: Tensor = x + self.mlp(x)
        return out


class ConvModulation(nn.Module):
    """A convolution of 11x11 in place of the attention (Conv2Former, arXiv 2211.11943), and the same MLP."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ImageNorm(channels)
        self.weigh = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU(), _depthwise(channels, 11, 11))
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.mlp = nn.Sequential(
            ImageNorm(channels), nn.Conv2d(channels, 2 * channels, 1), nn.SiLU(), nn.Conv2d(2 * channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        x = x + self.out(self.weigh(normed) * self.value(normed))
        out: Tensor = x + self.mlp(x)
        return out


ATTENTION.add("linear", LinearAttention)
ATTENTION.add("convolution", ConvModulation)


class MultiScale(nn.Module):
    """Convolutional attention over scales of 5, 7, 11 and 21 pixels (MSCA of SegNeXt, arXiv 2209.08575).

    5x5 depthwise; three pairs of strips, 1xk then kx1; their sum with the 5x5; 1x1. The result scales the input; 1x1
    and GELU in front, 1x1 behind.
    """

    SCALES = (7, 11, 21)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 1), nn.GELU())
        self.near = _depthwise(channels, 5, 5)
        self.strips = nn.ModuleList(
            nn.Sequential(_depthwise(channels, 1, k), _depthwise(channels, k, 1)) for k in self.SCALES
        )
        self.weigh = nn.Conv2d(channels, channels, 1)
        self.leave = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        near = self.near(x)
        scales = near
        for strip in self.strips:
            scales = scales + strip(near)
        out: Tensor = self.leave(self.weigh(scales) * x)
        return out


class Inception(nn.Module):
    """A quarter of the channels each by 3x3, 1x11 and 11x1 depthwise, the rest as it is (InceptionNeXt, 2303.16900)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        part = max(1, channels // 4)
        self.parts = [channels - 3 * part, part, part, part]
        self.enter = nn.Sequential(nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 1), nn.GELU())
        self.convs = nn.ModuleList(_depthwise(part, *size) for size in ((3, 3), (1, 11), (11, 1)))
        self.leave = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, *rest = torch.split(self.enter(x), self.parts, dim=1)
        mixed = [conv(part) for conv, part in zip(self.convs, rest, strict=True)]
        out: Tensor = self.leave(torch.cat((kept, *mixed), dim=1))
        return out


SPATIAL.add("multi-scale", MultiScale)
SPATIAL.add("inception", Inception)


def smooth(channels: int) -> nn.Module:
    """Inverted bottleneck around a 3x3 depthwise convolution with an identity of its own (IRFFN of CMT, 2107.06263)."""
    hidden = 4 * channels
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1),
        nn.GELU(),
        nn.BatchNorm2d(hidden),
        Residual(_depthwise(hidden, 3, 3)),
        nn.GELU(),
        nn.BatchNorm2d(hidden),
        nn.Conv2d(hidden, channels, 1),
        nn.BatchNorm2d(channels),
    )


def mixed(channels: int) -> nn.Module:
    """1x1 to 4C, 3x3 depthwise, GELU, 1x1, with BatchNorm in front (Mix-FFN of SegFormer, arXiv 2105.15203)."""
    hidden = 4 * channels
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.Conv2d(channels, hidden, 1),
        _depthwise(hidden, 3, 3),
        nn.GELU(),
        nn.Conv2d(hidden, channels, 1),
    )


FEED_FORWARD.add("smooth", smooth)
FEED_FORWARD.add("mixed", mixed)
