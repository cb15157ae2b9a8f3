"""INT8 as each kind of engine wants it."""

from __future__ import annotations

from dataclasses import dataclass

from mednext_edge.quantize.kinds import KINDS

LEVELS = 127
"""Largest value of a symmetric signed INT8 number; -128 is not used, so that both signs reach equally far."""


@dataclass(frozen=True)
class Flavour:
    """INT8 as one kind of engine wants it.

    Attributes:
        kinds: of layers that become INT8 unless told otherwise, names in KINDS.
        weight_levels: how many levels a weight has on each side of zero.
        even_depthwise: write the weights of depthwise convolutions as even numbers, twice their level.
    """

    kinds: tuple[str, ...]
    weight_levels: int = LEVELS
    even_depthwise: bool = False


# x86 processors without VNNI add pairs of products in 16 bits, which saturate unless the weights keep to 7 bits. oneDNN
# halves those of depthwise convolutions by itself, and would round odd ones; other convolutions in groups it does not.
CPU = Flavour(tuple(KINDS), weight_levels=63, even_depthwise=True)
# They hold nine of ten multiplications of a MedNeXt with kernel 3. For 3-D depthwise and transposed convolutions
# TensorRT has no INT8 kernel, or one that is slower than float16.
NVIDIA = Flavour(("pointwise",))
