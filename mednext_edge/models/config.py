"""What a MedNeXt is made of, as data: enough to rebuild the network and nothing more.

The numbers of the published variants are those of the authors' factories
(Roy et al., MICCAI 2023, arXiv 2303.09975).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mednext_edge.errors import UsageError
from mednext_edge.registry import unknown_name

Layout = Literal["mic", "monai"]


@dataclass(frozen=True)
class MedNeXtConfig:
    """Architecture of one MedNeXt with L resolution levels (L = 4 in every published variant).

    Attributes:
        in_channels: image channels.
        classes: output channels, background included.
        spatial_dims: 2 or 3.
        channels: width C of the first level; level i has C * 2**i channels.
        expansion: hidden width over width, per stage, 2L+1 values: encoder 0..L-1, bottleneck,
            decoder L-1..0. An up block uses the ratio of the decoder stage that follows it.
        down_expansion: the same for the L down blocks. The authors use the *next* level's
            ratio, MONAI the *current* level's; both are just numbers here.
        blocks: blocks per stage, 2L+1 values in the same order.
        encoder_kernel, decoder_kernel: odd depthwise kernel sizes; the bottleneck uses the decoder's.
        residual, residual_resample: identity paths of the blocks, and of the down and up blocks.
        norm: "group" is one group per channel (instance norm over each sample), "layer" is
            LayerNorm over channels.
        grn: global response normalisation in the blocks and the up blocks.
        down_grn: the same for each of the L down blocks (authors: all but the first; MONAI: none).
        deep_supervision: extra heads at strides 2, 4, ... 2**L.
    """

    in_channels: int = 1
    classes: int = 2
    spatial_dims: int = 3
    channels: int = 32
    expansion: tuple[int, ...] = (2,) * 9
    down_expansion: tuple[int, ...] = (2,) * 4
    blocks: tuple[int, ...] = (2,) * 9
    encoder_kernel: int = 3
    decoder_kernel: int = 3
    residual: bool = True
    residual_resample: bool = True
    norm: Literal["group", "layer"] = "group"
    grn: bool = False
    down_grn: tuple[bool, ...] = (False,) * 4
    deep_supervision: bool = False

    def __post_init__(self) -> None:
        # JSON brings lists; tuples keep the dataclass hashable.
        for name in ("expansion", "down_expansion", "blocks", "down_grn"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        stages = 2 * self.levels + 1
        if len(self.blocks) != stages or len(self.expansion) != stages or self.levels < 1:
            raise UsageError(
                f"found {len(self.blocks)} block counts and {len(self.expansion)} expansion ratios; "
                f"expected {stages} of each (encoder, bottleneck, decoder)"
            )
        if len(self.down_expansion) != self.levels or len(self.down_grn) != self.levels:
            raise UsageError(f"expected {self.levels} down-block ratios, found {self.down_expansion}")
        if self.spatial_dims not in (2, 3):
            raise UsageError(f"found {self.spatial_dims} spatial dimensions; expected 2 or 3")
        for kernel in (self.encoder_kernel, self.decoder_kernel):
            if kernel < 1 or kernel % 2 == 0:
                raise UsageError(f"found kernel size {kernel}; expected an odd number such as 3, 5 or 7")
        counts = (self.in_channels, self.classes, self.channels, *self.blocks, *self.expansion, *self.down_expansion)
        if min(counts) < 1:
            raise UsageError(f"channel, class, block and expansion counts must be at least 1: {self}")
        if self.norm not in ("group", "layer"):
            raise unknown_name("norm", self.norm, ("group", "layer"))

    @property
    def levels(self) -> int:
        """Number of down-samplings; the input must be divisible by 2**levels."""
        return len(self.blocks) // 2

    @property
    def divisor(self) -> int:
        """Every spatial size of the input must be a multiple of this."""
        return int(2**self.levels)

    @property
    def variant(self) -> str:
        """`S`, `B`, `M`, `L`, or `custom` when no published variant has these numbers."""
        for name, (expansion, blocks) in VARIANTS.items():
            if self.expansion == expansion and self.blocks == blocks and self.channels == 32:
                return name
        return "custom"

    @property
    def layout(self) -> str:
        """Whose down-block ratios these are: `mic`, `monai`, `both` (S) or `custom`."""
        mic = self.down_expansion == self.expansion[1 : self.levels + 1]
        monai = self.down_expansion == self.expansion[: self.levels]
        return {(True, True): "both", (True, False): "mic", (False, True): "monai"}.get((mic, monai), "custom")

    def without_deep_supervision(self) -> MedNeXtConfig:
        return replace(self, deep_supervision=False)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "S": ((2,) * 9, (2,) * 9),
    "B": ((2, 3, 4, 4, 4, 4, 4, 3, 2), (2,) * 9),
    "M": ((2, 3, 4, 4, 4, 4, 4, 3, 2), (3, 4, 4, 4, 4, 4, 4, 4, 3)),
    "L": ((3, 4, 8, 8, 8, 8, 8, 4, 3), (3, 4, 8, 8, 8, 8, 8, 4, 3)),
}
"""Published variants: (expansion ratios, block counts)."""


def mednext_config(
    variant: str = "S",
    *,
    in_channels: int = 1,
    classes: int = 2,
    kernel: int = 3,
    spatial_dims: int = 3,
    deep_supervision: bool = False,
    grn: bool = False,
    norm: Literal["group", "layer"] = "group",
    layout: Layout = "mic",
) -> MedNeXtConfig:
    """The configuration of a published variant.

    Args:
        variant: `S`, `B`, `M` or `L`, in either case.
        layout: whose down-block rule to follow: the authors' (`mic`) or MONAI's (`monai`).

    Raises:
        UnknownNameError: no such variant or layout.
    """
    if variant.upper() not in VARIANTS:
        raise unknown_name("MedNeXt variant", variant, VARIANTS)
    if layout not in ("mic", "monai"):
        raise unknown_name("layout", layout, ("mic", "monai"))
    expansion, blocks = VARIANTS[variant.upper()]
    return MedNeXtConfig(
        in_channels=in_channels,
        classes=classes,
        spatial_dims=spatial_dims,
        expansion=expansion,
        down_expansion=expansion[1:5] if layout == "mic" else expansion[:4],
        blocks=blocks,
        encoder_kernel=kernel,
        decoder_kernel=kernel,
        norm=norm,
        grn=grn,
        # The authors' factory does not pass the flag on to the first down block.
        down_grn=(False, grn, grn, grn) if layout == "mic" else (False,) * 4,
        deep_supervision=deep_supervision,
    )
