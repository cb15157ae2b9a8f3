"""What an engine does for one patch, counted instead of timed: the same on an idle and on a busy machine.

Counts come from the graph that OpenVINO really executes, after its own fusions. They depend on its version and on the
processor's instruction set; with `ONEDNN_MAX_CPU_ISA=AVX2` in the environment newer x86-64 processors count as AVX2.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from mednext_edge.runtime.openvino_session import Executed, OpenVinoSession
from mednext_edge.task import Frozen

BYTES = {"f32": 4, "i32": 4, "u32": 4, "bf16": 2, "f16": 2, "i8": 1, "u8": 1, "i64": 8, "boolean": 1}
IDLE = ("Const", "Input", "Output", "Reshape")
"""Operators that move nothing: OpenVINO gives a reshaped tensor the memory of the one before."""


class Proxies(Frozen):
    """What stands for time.

    Attributes:
        operators: executed operators by kind.
        reorders: of them those that only change layout or precision.
        fake_quantize: of them those that round to INT8 apart, because nothing before or behind could take it in.
        bytes_moved: read and written by all operators for one patch, if nothing stayed in a cache.
        engine_bytes: size of the engine's files; 0 of a model in memory.
    """

    operators: dict[str, int]
    reorders: int
    fake_quantize: int
    bytes_moved: int
    engine_bytes: int

    @property
    def executed(self) -> int:
        """All operators."""
        return sum(self.operators.values())


def count(session: OpenVinoSession, file: Path | None = None) -> Proxies:
    """The proxies of an opened engine; `file` is its IR."""
    ops = [op for op in session.executed() if op.kind not in IDLE]
    kinds = Counter(op.kind for op in ops)
    parts = [] if file is None else [part for part in file.parent.iterdir() if part.stem == file.stem]
    return Proxies(
        operators=dict(sorted(kinds.items())),
        reorders=kinds["Reorder"],
        fake_quantize=kinds["FakeQuantize"],
        bytes_moved=sum(_bytes(op) for op in ops),
        engine_bytes=sum(part.stat().st_size for part in parts),
    )


def worse(found: Proxies, reference: Proxies) -> list[str]:
    """What there is more of than in the reference, in words; empty when nothing is."""
    pairs = {name: (getattr(found, name), getattr(reference, name)) for name in GATED}
    return [f"{name.replace('_', ' ')}: {a} instead of {b}" for name, (a, b) in pairs.items() if a > b]


GATED = ("executed", "reorders", "fake_quantize", "bytes_moved", "engine_bytes")


def _bytes(op: Executed) -> int:
    return sum(math.prod(shape) * BYTES.get(precision, 4) for shape, precision in (*op.inputs, *op.outputs))
