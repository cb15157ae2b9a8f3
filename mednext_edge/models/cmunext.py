"""CMUNeXt (Tang et al., ISBI 2024, arXiv 2308.01239), key for key the authors' state_dict.

A 2-D U-Net of large depthwise kernels for one image of a few hundred pixels a side. Images are [N, C, H, W].
BatchNorm stands behind the GELU, not in front of it: `fusion.batch_norm` says what that means for folding it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mednext_edge.errors import UsageError
from mednext_edge.registry import unknown_name

LEVELS = 5


@dataclass(frozen=True)
class CMUNeXtConfig:
    """Architecture of one CMUNeXt.

    Attributes:
        in_channels: image channels.
        classes: output channels; 1 is the logit of one foreground class, as in the authors' networks.
        widths: channels of the five levels.
        depths: units of each encoder.
        kernels: odd depthwise kernel size of each encoder.
    """

    in_channels: int = 3
    classes: int = 1
    widths: tuple[int, ...] = (16, 32, 128, 160, 256)
    depths: tuple[int, ...] = (1, 1, 1, 3, 1)
    kernels: tuple[int, ...] = (3, 3, 7, 7, 7)

    def __post_init__(self) -> None:
        # JSON brings lists; tuples keep the dataclass hashable.
        for name in ("widths", "depths", "kernels"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != LEVELS or min(values) < 1:
                raise UsageError(f"found the {name} {values}; expected {LEVELS} numbers, at least 1 each")
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise UsageError(f"found the kernels {self.kernels}; expected odd numbers such as 3, 7 or 9")
        if min(self.in_channels, self.classes) < 1:
            raise UsageError(f"found {self.in_channels} channels and {self.classes} classes; expected at least 1 each")

    @property
    def spatial_dims(self) -> int:
        return 2

    @property
    def divisor(self) -> int:
        """Every spatial size of the input must be a multiple of this."""
        return int(2 ** (LEVELS - 1))

    @property
    def variant(self) -> str:
        """`S`, `base`, `L`, or `custom` when no published variant has these numbers."""
        found = (self.widths, self.depths, self.kernels)
        return next((name for name, numbers in VARIANTS.items() if numbers == found), "custom")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "S": ((8, 16, 32, 64, 128), (1, 1, 1, 1, 1), (3, 3, 7, 7, 9)),
    "base": ((16, 32, 128, 160, 256), (1, 1, 1, 3, 1), (3, 3, 7, 7, 7)),
    "L": ((32, 64, 128, 256, 512), (1, 1, 1, 6, 3), (3, 3, 7, 7, 7)),
}
"""Published variants: (widths, depths, kernels)."""


def cmunext_config(variant: str = "base", *, in_channels: int = 3, classes: int = 1) -> CMUNeXtConfig:
    """The configuration of a published variant.

    Args:
        variant: `S`, `base` or `L`, in either case; `B` is `base`.

    Raises:
        UnknownNameError: no such variant.
    """
    names = {"b": "base", **{name.lower(): name for name in VARIANTS}}
    if variant.lower() not in names:
        raise unknown_name("CMUNeXt variant", variant, VARIANTS)
    widths, depths, kernels = VARIANTS[names[variant.lower()]]
    return CMUNeXtConfig(in_channels, classes, widths, depths, kernels)


class Residual(nn.Module):
    """fn(x) + x."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fn(x) + x
        return out


class ConvBlock(nn.Module):
    """3x3 convolution -> BatchNorm -> ReLU: [N, C, H, W] -> [N, out, H, W]."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class UpConv(nn.Module):
    """Bilinear doubling -> 3x3 convolution -> BatchNorm -> ReLU: [N, C, H, W] -> [N, out, 2H, 2W]."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(channels, out, 3, padding=1),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(x)
        return out


class CMUNeXtBlock(nn.Module):
    """`depth` units of large-kernel mixing, then a 3x3 block to the next width: [N, C, H, W] -> [N, out, H, W].

    A unit is Residual(depthwise kxk -> GELU -> BatchNorm) -> 1x1 to 4C -> GELU -> BatchNorm -> 1x1 -> GELU ->
    BatchNorm; no residual around the whole.
    """

    def __init__(self, channels: int, out: int, depth: int, kernel: int) -> None:
        super().__init__()
        self.block = nn.Sequential(*(_unit(channels, kernel) for _ in range(depth)))
        self.up = ConvBlock(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(self.block(x))
        return out


def _unit(channels: int, kernel: int) -> nn.Sequential:
    depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
    return nn.Sequential(
        Residual(nn.Sequential(depthwise, nn.GELU(), nn.BatchNorm2d(channels))),
        nn.Conv2d(channels, 4 * channels, 1),
        nn.GELU(),
        nn.BatchNorm2d(4 * channels),
        nn.Conv2d(4 * channels, channels, 1),
        nn.GELU(),
        nn.BatchNorm2d(channels),
    )


class SkipFusion(nn.Module):
    """Joins skip and upsampled features, each by itself first (two groups): [N, 2C, H, W] -> [N, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        both, hidden = 2 * channels, 4 * channels
        self.conv = nn.Sequential(
            nn.Conv2d(both, both, 3, padding=1, groups=2),
            nn.GELU(),
            nn.BatchNorm2d(both),
            nn.Conv2d(both, hidden, 1),
            nn.GELU(),
            nn.BatchNorm2d(hidden),
            nn.Conv2d(hidden, channels, 1),
            nn.GELU(),
            nn.BatchNorm2d(channels),
        )

    def forward(self, skip: Tensor, up: Tensor) -> Tensor:
        out: Tensor = self.conv(torch.cat((skip, up), dim=1))
        return out


class CMUNeXt(nn.Module):
    """The network: [N, in_channels, H, W], sides multiples of 16 -> raw logits [N, classes, H, W].

    Modules are named and ordered as the authors', so that a state_dict and its order are theirs.
    """

    def __init__(self, config: CMUNeXtConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.Maxpool = nn.MaxPool2d(2, 2)
        self.stem = ConvBlock(config.in_channels, widths[0])
        inputs = (widths[0], *widths[:-1])
        for i, (channels, out) in enumerate(zip(inputs, widths, strict=True)):
            self.add_module(f"encoder{i + 1}", CMUNeXtBlock(channels, out, config.depths[i], config.kernels[i]))
        for i in reversed(range(1, LEVELS)):
            self.add_module(f"Up{i + 1}", UpConv(widths[i], widths[i - 1]))
            self.add_module(f"Up_conv{i + 1}", SkipFusion(widths[i - 1]))
        self.Conv_1x1 = nn.Conv2d(widths[0], config.classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.get_submodule("encoder1")(self.stem(x))
        skips = [x]
        for i in range(2, LEVELS + 1):
            x = self.get_submodule(f"encoder{i}")(self.Maxpool(x))
            skips.append(x)
        for i in range(LEVELS, 1, -1):
            x = self.get_submodule(f"Up_conv{i}")(skips[i - 2], self.get_submodule(f"Up{i}")(x))
        logits: Tensor = self.Conv_1x1(x)
        return logits
