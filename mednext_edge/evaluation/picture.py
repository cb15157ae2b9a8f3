"""One slice of one case: image, reference, FP32, INT8 and where the two differ."""

from __future__ import annotations

import io
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from mednext_edge.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Slice = NDArray[np.generic]

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
"""Okabe and Ito's palette, told apart with any colour vision; label n has entry n - 1, and round again."""
DIFFERENCE = "#FF00FF"
_PANEL_INCHES = 3.2
_DPI = 110


def render(
    image: Slice,
    reference: Slice | None,
    baseline: Slice | None,
    exported: Slice,
    spacing: Sequence[float],
    *,
    labels: Mapping[str, int] | None = None,
    names: tuple[str, str] = ("FP32", "INT8"),
) -> bytes:
    """PNG of the z slice with most foreground (of the reference; without one of the baseline, then the export).

    The last panel marks every voxel where baseline and export differ; without a baseline, where
    reference and export differ; without either it is left out.

    Args:
        image: [C, Z, Y, X] or [Z, Y, X]; the first channel is shown, from its 1st to 99th percentile;
            of one slice of red, green and blue (0..255) all three are.
        reference, baseline, exported: [Z, Y, X].
        spacing: voxel size in mm, (z, y, x).
        labels: names for the legend.
        names: of baseline and export.

    Raises:
        DataError: the shapes differ.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    volume = image[0] if image.ndim == 4 else image
    # An image of one slice lies as a viewer shows it, first row on top; slices of a volume as they are in space.
    origin: Literal["upper", "lower"] = "upper" if len(volume) == 1 else "lower"
    coloured = image.ndim == 4 and image.shape[:2] == (3, 1)
    maps = {"reference": reference, names[0]: baseline, names[1]: exported}
    present = {name: found for name, found in maps.items() if found is not None}
    for name, found in present.items():
        if found.shape != volume.shape:
            raise DataError(f"found a {name} of shape {found.shape} for an image of {volume.shape}")
    counts = np.count_nonzero(next(iter(present.values())), axis=(1, 2))
    z = int(counts.argmax()) if counts.any() else len(counts) // 2
    grey = volume[z].astype(np.float64)
    other, against = (baseline, names[0]) if baseline is not None else (reference, "reference")
    panels = 1 + len(present) + (other is not None)
    height, width = grey.shape[0] * spacing[1], grey.shape[1] * spacing[2]
    tall = min(max(height / width, 0.4), 2.5) * _PANEL_INCHES
    figure = Figure(figsize=(panels * _PANEL_INCHES, tall + 0.8), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)  # pyplot, with its global state, is never asked
    axes: list[Axes] = list(figure.subplots(1, panels, squeeze=False)[0])
    low, high = np.percentile(grey, [1, 99])
    for axis in axes:
        shown_image = np.clip(np.moveaxis(image[:, 0].astype(np.float64), 0, -1) / 255, 0, 1) if coloured else grey
        axis.imshow(
            shown_image,
            cmap="gray",
            vmin=low,
            vmax=max(high, low + 1e-6),
            origin=origin,
            aspect=spacing[1] / spacing[2],
        )
        axis.set_axis_off()
    axes[0].set_title(f"image, slice {z}")
    for axis, (name, found) in zip(axes[1:], present.items(), strict=False):
        _overlay(axis, _coloured(found[z]), spacing, origin)
        axis.set_title(name)
    if other is not None:
        differs = other != exported
        _overlay(axes[-1], _flat(differs[z], DIFFERENCE), spacing, origin)
        share = 100 * np.count_nonzero(differs) / differs.size
        axes[-1].set_title(f"{against} ≠ {names[1]}: {share:.2f} % of voxels", fontsize=9)
    shown = sorted({int(value) for found in present.values() for value in np.unique(found[z])} - {0})
    if shown:
        by_value = {value: name for name, value in (labels or {}).items()}
        handles = [Patch(color=_colour(value), label=by_value.get(value, f"label {value}")) for value in shown]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def comparison(
    image: Slice,
    reference: Slice | None,
    baseline: Slice | None,
    exported: Slice,
    path: Path,
    spacing: Sequence[float],
    *,
    labels: Mapping[str, int] | None = None,
    names: tuple[str, str] = ("FP32", "INT8"),
) -> None:
    """Write what `render` draws to a file; to a temporary name first, then renamed.

    Raises:
        DataError: the shapes differ.
    """
    content = render(image, reference, baseline, exported, spacing, labels=labels, names=names)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _colour(value: int) -> str:
    return COLOURS[(value - 1) % len(COLOURS)]


def _coloured(found: Slice) -> NDArray[np.float64]:
    """[Y, X] -> [Y, X, 4], background transparent."""
    layers = np.zeros((*found.shape, 4))
    for value in np.unique(found):
        if value != 0:
            layers += _flat(found == value, _colour(int(value)))
    return layers


def _flat(mask: Slice, colour: str) -> NDArray[np.float64]:
    from matplotlib.colors import to_rgba

    layer: NDArray[np.float64] = mask[..., np.newaxis] * np.array(to_rgba(colour, 0.75))
    return layer


def _overlay(
    axis: Axes, layer: NDArray[np.float64], spacing: Sequence[float], origin: Literal["upper", "lower"]
) -> None:
    axis.imshow(layer, origin=origin, interpolation="nearest", aspect=spacing[1] / spacing[2])
