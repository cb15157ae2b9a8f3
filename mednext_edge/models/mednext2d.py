"""A 2-D MedNeXt for classification and segmentation: a reconstruction, not the authors' network.

Xue, Pi, Liu, Zeng and Sun ("MedNeXt for accurate medical image classification and segmentation", PLoS One 21(1),
2026, e0340108) describe in their abstract a pyramid of three light modules made of convolutions and MLPs alone: a
Linear Attention FFN, a Spatial Encoding Module over several scales, and a Smooth DwConv FFN. Everything else here
(order, widths, depths, norms, stem, decoder) is our choice, and the modules are published equivalents
(`models.modules2d`). No weights of the authors fit it, and no result of theirs is claimed for it.

It has nothing but the name in common with the 3-D MedNeXt of Roy et al. (`models.mednext`).
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mednext_edge.errors import UsageError
from mednext_edge.models.modules2d import ATTENTION, FEED_FORWARD, SPATIAL
from mednext_edge.registry import unknown_name

STAGES = 4
STRIDE = 32
Kind = Literal["segmentation", "classification"]


@dataclass(frozen=True)
class MedNeXt2dConfig:
    """Architecture of one 2-D MedNeXt.

    Attributes:
        kind: what it answers: logits of every pixel, or of the image.
        in_channels: image channels.
        classes: output channels; 1 is the logit of one class against the other.
        widths: channels of the four stages, at strides 4, 8, 16 and 32.
        depths: blocks of each stage.
        attention, spatial, feed_forward: names in ATTENTION, SPATIAL and FEED_FORWARD; a block is one of each.
    """

    kind: Kind = "segmentation"
    in_channels: int = 3
    classes: int = 2
    widths: tuple[int, ...] = (32, 64, 160, 256)
    depths: tuple[int, ...] = (1, 1, 2, 1)
    attention: str = "linear"
    spatial: str = "multi-scale"
    feed_forward: str = "smooth"

    def __post_init__(self) -> None:
        # JSON brings lists; tuples keep the dataclass hashable.
        for name in ("widths", "depths"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != STAGES or min(values) < 1:
                raise UsageError(f"found the {name} {values}; expected {STAGES} numbers, at least 1 each")
        if any(width % 2 for width in self.widths):
            raise UsageError(f"found the widths {self.widths}; expected even numbers")
        if min(self.in_channels, self.classes) < 1:
            raise UsageError(f"found {self.in_channels} channels and {self.classes} classes; expected at least 1 each")
        if self.kind not in ("segmentation", "classification"):
            raise unknown_name("kind of network", self.kind, ("segmentation", "classification"))
        for registry, name in ((ATTENTION, self.attention), (SPATIAL, self.spatial), (FEED_FORWARD, self.feed_forward)):
            _ = registry[name]

    @property
    def spatial_dims(self) -> int:
        return 2

    @property
    def divisor(self) -> int:
        """Every spatial size of the input must be a multiple of this."""
        return STRIDE

    @property
    def variant(self) -> str:
        """`tiny`, `small`, `base`, or `custom` for other numbers or other modules."""
        modules = (self.attention, self.spatial, self.feed_forward)
        standard = modules == ("linear", "multi-scale", "smooth")
        numbers = (self.widths, self.depths)
        return next((name for name, found in VARIANTS.items() if standard and found == numbers), "custom")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "tiny": ((32, 64, 160, 256), (1, 1, 2, 1)),
    "small": ((48, 96, 240, 384), (1, 1, 3, 1)),
    "base": ((64, 128, 320, 512), (2, 2, 4, 2)),
}
"""Sizes of ours: (widths, depths)."""


def mednext2d_config(
    variant: str = "tiny", *, kind: Kind = "segmentation", in_channels: int = 3, classes: int = 2
) -> MedNeXt2dConfig:
    """The configuration of a size.

    Raises:
        UnknownNameError: no such size.
    """
    if variant.lower() not in VARIANTS:
        raise unknown_name("2-D MedNeXt variant", variant, VARIANTS)
    widths, depths = VARIANTS[variant.lower()]
    return MedNeXt2dConfig(kind, in_channels, classes, widths, depths)


def _downsample(channels: int, out: int) -> list[nn.Module]:
    """3x3 convolution of stride 2 with its BatchNorm: halves both sides."""
    return [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.BatchNorm2d(out)]


class Block(nn.Module):
    """Attention, spatial encoding and feed-forward, each added to what it is given: [N, C, H, W] -> the same."""

    def __init__(self, config: MedNeXt2dConfig, channels: int) -> None:
        super().__init__()
        self.attention = ATTENTION[config.attention](channels)
        self.spatial = SPATIAL[config.spatial](channels)
        self.feed_forward = FEED_FORWARD[config.feed_forward](channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        x = x + self.spatial(x)
        out: Tensor = x + self.feed_forward(x)
        return out


class Encoder(nn.Module):
    """Four stages: [N, C, H, W] -> features at strides 4, 8, 16 and 32."""

    def __init__(self, config: MedNeXt2dConfig) -> None:
        super().__init__()
        widths = config.widths
        stem = [*_downsample(config.in_channels, widths[0] // 2), nn.GELU(), *_downsample(widths[0] // 2, widths[0])]
        entries = [stem, *(_downsample(a, b) for a, b in itertools.pairwise(widths))]
        self.entries = nn.ModuleList(nn.Sequential(*entry) for entry in entries)
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(config, width) for _ in range(depth)))
            for width, depth in zip(widths, config.depths, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for entry, stage in zip(self.entries, self.stages, strict=True):
            x = stage(entry(x))
            features.append(x)
        return features


class Decoder(nn.Module):
    """U-shaped: features of the encoder -> logits at full size, [N, classes, H, W].

    On each level what comes from below is brought to the level's width, doubled, added to the encoder's features, and
    mixed by one feed-forward module. Logits are made at stride 4 and stretched.
    """

    def __init__(self, config: MedNeXt2dConfig) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(config.widths))
        self.lateral = nn.ModuleList(nn.Conv2d(below, width, 1) for width, below in pairs)
        self.mix = nn.ModuleList(FEED_FORWARD[config.feed_forward](width) for width, _ in pairs)
        self.head = nn.Conv2d(config.widths[0], config.classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        for level in reversed(range(len(self.mix))):
            x = features[level] + _stretched(self.lateral[level](x), 2)
            x = x + self.mix[level](x)
        return _stretched(self.head(x), 4)


def _stretched(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class MedNeXt2d(nn.Module):
    """The network: [N, in_channels, H, W], sides multiples of 32 -> raw logits.

    [N, classes, H, W] of a segmentation, [N, classes] of a classification.
    """

    def __init__(self, config: MedNeXt2dConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        if config.kind == "segmentation":
            self.decoder = Decoder(config)
        else:
            self.classifier = nn.Linear(config.widths[-1], config.classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        if self.config.kind == "segmentation":
            dense: Tensor = self.decoder(features)
            return dense
        pooled = features[-1].mean(dim=(2, 3), dtype=torch.float32 if x.dtype == torch.float16 else None)
        logits: Tensor = self.classifier(pooled.to(x.dtype))
        return logits
