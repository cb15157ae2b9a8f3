"""Instruction sets of older and smaller processors, and how engines are held back to them on a newer one."""

from __future__ import annotations

import os
from dataclasses import dataclass

from mednext_edge import cpu


@dataclass(frozen=True)
class InstructionSet:
    """A set by its names: what the processor must have, what ours calls it, what oneDNN calls it."""

    needs: str
    ours: str
    onednn: str


SETS = (
    InstructionSet("avx2", "avx2", "AVX2"),
    InstructionSet("avx_vnni", "avx_vnni", "AVX2_VNNI"),
    InstructionSet("avx512", "avx512", "AVX512_CORE"),
    InstructionSet("avx512_vnni", "avx512_vnni", "AVX512_CORE_VNNI"),
    InstructionSet("avx512_bf16", "avx512_bf16", "AVX512_CORE_BF16"),
    InstructionSet("amx_bf16", "amx", "AVX512_CORE_AMX"),
)


def sets_here(asked: set[str]) -> list[InstructionSet]:
    """Those of the named sets (ours) that this processor has.

    Raises:
        ValueError: no set is called so.
    """
    if unknown := asked - {each.ours for each in SETS}:
        known = ", ".join(each.ours for each in SETS)
        raise ValueError(f"unknown sets {', '.join(sorted(unknown))}; known: {known}")
    return [each for each in SETS if each.needs in cpu.features() and each.ours in asked]


def hold_back(to: InstructionSet) -> None:
    """Holds the native engine and oneDNN, in PyTorch and in OpenVINO, back to a set.

    Counts for processes that start later, and for this one if it has computed nothing yet.
    """
    os.environ |= {"MEDNEXT_CPU_ISA": to.ours, "ONEDNN_MAX_CPU_ISA": to.onednn}
