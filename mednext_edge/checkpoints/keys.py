"""Tensor names: the authors' (nnunet_mednext) and MONAI's (monai.networks.nets.MedNeXt), exact both ways.

The same tensors stand under both; only the names differ, and MONAI counts its decoder from the bottom.
With L levels: `dec_stages.i` is `dec_block_(L-1-i)`, `up_blocks.i` is `up_(L-1-i)`, `out_blocks.i` is `out_(L-i)`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

DUMMY = "dummy_tensor"
"""A parameter of one element, 1.0, in every checkpoint of the authors; MONAI has none. It changes no output."""

_MONAI = re.compile(r"(enc_stages|down_blocks|up_blocks|dec_stages|out_blocks)\.(\d+)\.")
_MIC = re.compile(r"(enc_block|down|up|dec_block|out)_(\d+)\.")
_TO_MIC: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "enc_stages": ("enc_block", lambda i, levels: i),
    "down_blocks": ("down", lambda i, levels: i),
    "up_blocks": ("up", lambda i, levels: levels - 1 - i),
    "dec_stages": ("dec_block", lambda i, levels: levels - 1 - i),
    "out_blocks": ("out", lambda i, levels: levels - i),
}
# Every numbering above is its own inverse.
_TO_MONAI = {mic: (monai, number) for monai, (mic, number) in _TO_MIC.items()}


def layout_of(names: Iterable[str]) -> Literal["mic", "monai"] | None:
    """Whose names these are; None when they are no MedNeXt's."""
    names = set(names)
    if "stem.weight" not in names:
        return None
    if any(_MONAI.match(n) for n in names):
        return "monai"
    return "mic" if any(n.startswith(("enc_block_", "down_")) for n in names) else None


def _levels(names: Iterable[str], pattern: re.Pattern[str], down: str) -> int:
    return 1 + max((int(m[2]) for n in names if (m := pattern.match(n)) and m[1] == down), default=-1)


def from_monai(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MONAI's names to the authors'; `dummy_tensor` is put in front."""
    levels = _levels(state, _MONAI, "down_blocks")

    def rename(name: str) -> str:
        if match := _MONAI.match(name):
            stage, number = _TO_MIC[match[1]]
            name = f"{stage}_{number(int(match[2]), levels)}.{name[match.end() :]}"
        return name.replace("global_resp_", "grn_")

    return {DUMMY: torch.ones(1), **{rename(name): tensor for name, tensor in state.items()}}


def to_monai(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names to MONAI's; `dummy_tensor` is left out."""
    levels = _levels(state, _MIC, "down")

    def rename(name: str) -> str:
        match = _MIC.match(name)
        if match and not name.startswith("out_0."):  # the main head has the same name in both
            stage, number = _TO_MONAI[match[1]]
            name = f"{stage}.{number(int(match[2]), levels)}.{name[match.end() :]}"
        return name.replace("grn_", "global_resp_")

    return {rename(name): tensor for name, tensor in state.items() if name != DUMMY}
