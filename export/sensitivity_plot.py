"""Error against gain, one dot a layer: which of them INT8 should leave alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from mednext_edge.quantize.sensitivity import Sensitivity

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
NAMED = 8
"""How many of the most expensive layers have their names beside them."""


def plot(layers: Sequence[Sensitivity], file: Path) -> None:
    """Write a PNG, to a temporary name first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for colour, kind in zip(COLOURS, dict.fromkeys(layer.kind for layer in layers), strict=False):
        dots = [layer for layer in layers if layer.kind == kind]
        gains, errors = [100 * dot.gain for dot in dots], [dot.nmse for dot in dots]
        axes.scatter(gains, errors, s=26, color=colour, edgecolors="black", linewidths=0.4, label=kind)
    for layer in sorted(layers, key=lambda layer: layer.price, reverse=True)[:NAMED]:
        place = 100 * layer.gain, layer.nmse
        axes.annotate(layer.name, place, xytext=(5, 3), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("gain: share of the time that INT8 saves, by a roofline (%)")
    axes.set_ylabel("cost: squared error of the logits over their square")
    axes.set_title("Each layer alone in INT8; upper left is expensive")
    axes.grid(alpha=0.3)
    axes.legend(title="kind", fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    temporary = file.with_name(f".{file.name}.part")
    temporary.write_bytes(content.getvalue())
    temporary.replace(file)
