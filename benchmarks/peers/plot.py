"""Time of one patch for every engine of every network, as bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

COLOURS = ("#0072B2", "#999999")


class Bar(Protocol):
    """What a row of the table must have to be drawn."""

    @property
    def network(self) -> str: ...
    @property
    def engine(self) -> str: ...
    @property
    def ours(self) -> bool: ...
    @property
    def p50_ms(self) -> float: ...
    @property
    def p90_ms(self) -> float: ...


def plot(rows: Sequence[Bar], file: Path, title: str) -> None:
    """Write a PNG; bars are medians, whiskers reach to the 90th percentile."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.5 + 0.3 * len(rows)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    names = [f"{row.network} · {row.engine}" for row in rows]
    colours = [COLOURS[0] if row.ours else COLOURS[1] for row in rows]
    spread = [[0.0] * len(rows), [row.p90_ms - row.p50_ms for row in rows]]
    axes.barh(names, [row.p50_ms for row in rows], xerr=spread, color=colours, capsize=2)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("one patch (ms); blue is this package")
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(file, format="png", metadata={"Software": None})
