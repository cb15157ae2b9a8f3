"""The pairs of a comparison: one dot a pair, and the interval of their median against the gate."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from mednext_edge.evaluation.duel import Duel

NOISE, THIS, ALLOWED = "#999999", "#0072B2", "#D55E00"


def plot(duel: Duel, file: Path) -> None:
    """Write a PNG, to a temporary name first."""
    from matplotlib.figure import Figure

    phases = [
        ("reference against itself", NOISE, duel.noise),
        ("this against the reference", THIS, duel.compared),
        ("again, in new processes", THIS, duel.confirmed),
    ]
    found = [(name, colour, phase) for name, colour, phase in phases if phase is not None]
    figure = Figure(figsize=(9, 4.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    start = 0
    for name, colour, phase in found:
        logs, ratio = np.array(phase.finding.logs), phase.finding.ratio
        along = np.arange(start, start + len(logs))
        axes.scatter(along, np.exp(logs), s=10, color=colour, alpha=0.5, linewidths=0)
        ends = [start - 0.5, start + len(logs) - 0.5]
        axes.fill_between(ends, ratio.low, ratio.high, color=colour, alpha=0.35, linewidth=0)
        axes.plot(ends, [ratio.value] * 2, color=colour, label=f"{name}: {ratio.value:.3f}")
        start += len(logs)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.axhline(1 + duel.rules.gate, color=ALLOWED, linestyle="--", label=f"gate {duel.rules.gate:.0%}")
    # Some pairs meet a busy moment; the axis shows the interval, not them.
    near = np.concatenate([np.exp(phase.finding.logs) for _, _, phase in found])
    low, high = np.percentile(near, [5, 95])
    axes.set_ylim(min(low, 1) / 1.05, max(high, 1 + duel.rules.gate) * 1.05)
    axes.set_xlabel("pair")
    axes.set_ylabel("time / time of the reference")
    axes.set_title(f"{duel.status}: patch {' x '.join(map(str, duel.patch))}")
    axes.legend(fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    temporary = file.with_name(f".{file.name}.part")
    temporary.write_bytes(content.getvalue())
    temporary.replace(file)
