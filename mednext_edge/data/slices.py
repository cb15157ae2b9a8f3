"""From single slices, each with its place in the patient, to one regular volume.

Positions and directions are in DICOM's patient coordinates, LPS millimetres (DICOM PS3.3, C.7.6.2.1.1), which
MRD uses too; the affine that comes out is RAS, as NIfTI has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mednext_edge.errors import GeometryError

Vector = tuple[float, float, float]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# Largest difference of a direction cosine between slices of one volume, about a tenth of a degree.
_SAME_DIRECTION = 2e-3
# Largest departure of a direction from length 1, and of the two from a right angle.
_SQUARE = 1e-2
# Largest relative difference of the pixel spacing between slices of one volume.
_SAME_SPACING = 1e-3
# Slices nearer than this, in mm, lie in one place.
_SAME_PLACE = 1e-2
# Largest departure of a distance between neighbours from the median distance, as a fraction of it.
_EVEN = 0.1
# Furthest that a slice may be off the normal through the first one, in pixels: beyond, the stack is tilted.
_DRIFT = 0.5


@dataclass(frozen=True)
class Slice:
    """One slice, without its pixels.

    Attributes:
        name: what to call it in messages; nothing that names a patient.
        position: LPS mm of the centre of the first pixel.
        row: unit vector along a row, that is towards higher columns.
        column: unit vector along a column, that is towards higher rows.
        spacing: mm between rows, and between columns.
        shape: rows, columns.
        thickness: mm; the voxel's depth where there is one slice alone.
    """

    name: str
    position: Vector
    row: Vector
    column: Vector
    spacing: tuple[float, float]
    shape: tuple[int, int]
    thickness: float = 1.0


@dataclass(frozen=True)
class Stack:
    """A regular volume: which slice comes where, and the affine of [Z, Y, X] = [slice, row, column].

    Attributes:
        order: indices of the slices, along the normal (row x column).
        affine: (column, row, slice, 1) -> RAS mm, (4, 4) float64.
    """

    order: tuple[int, ...]
    affine: NDArray[np.float64]


def stack(slices: Sequence[Slice]) -> Stack:
    """Sort slices into a volume.

    Raises:
        GeometryError: none at all (`empty`), numbers that are no geometry (`invalid`), different sizes (`size`),
            pixel spacings (`spacing`) or orientations (`orientation`), two slices in one place (`duplicate`),
            a slice missing (`gap`), uneven distances (`uneven`), or a stack that leans (`tilt`).
    """
    if not slices:
        raise _fault("empty", "found no slice; expected at least one")
    first = slices[0]
    _check_numbers(slices)
    _check_alike(slices)
    row, column = np.array(first.row, np.float64), np.array(first.column, np.float64)
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    positions = np.array([s.position for s in slices], np.float64)
    depth = positions @ normal
    order = np.argsort(depth, kind="stable")
    step = normal * first.thickness
    if len(slices) > 1:
        names = [slices[i].name for i in order]
        _check_even(np.diff(depth[order]), names)
        step = (positions[order[-1]] - positions[order[0]]) / (len(slices) - 1)
        _check_upright(positions[order], normal, step, min(first.spacing))
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2] = row * first.spacing[1], column * first.spacing[0], step
    lps[:3, 3] = positions[order[0]]
    return Stack(tuple(int(i) for i in order), LPS_TO_RAS @ lps)


def _fault(kind: str, message: str) -> GeometryError:
    return GeometryError(message, kind)


def _check_numbers(slices: Sequence[Slice]) -> None:
    for one in slices:
        numbers = np.array([*one.position, *one.row, *one.column, *one.spacing, one.thickness])
        if not np.isfinite(numbers).all() or np.abs(numbers).max() > 1e6:
            raise _fault("invalid", f"{one.name} has a position or direction that is no number of millimetres")
        if min(*one.spacing, one.thickness) <= 0 or min(one.shape) < 1:
            raise _fault(
                "invalid",
                f"{one.name} has the pixel spacing {one.spacing}, the thickness {one.thickness} and the size "
                f"{one.shape}; expected numbers over 0",
            )
        row, column = np.array(one.row), np.array(one.column)
        lengths = np.abs(np.linalg.norm([row, column], axis=1) - 1)
        if lengths.max() > _SQUARE or abs(row @ column) > _SQUARE:
            raise _fault(
                "invalid", f"{one.name} has the directions {one.row} and {one.column}; expected two unit vectors at 90°"
            )


def _check_alike(slices: Sequence[Slice]) -> None:
    first = slices[0]
    for other in slices[1:]:
        if other.shape != first.shape:
            raise _fault(
                "size",
                f"{first.name} has {first.shape} pixels and {other.name} {other.shape}; expected one size. "
                "Send the images of different sizes as series of their own",
            )
        if not np.allclose(other.spacing, first.spacing, rtol=_SAME_SPACING, atol=0):
            raise _fault(
                "spacing", f"{first.name} has pixels of {first.spacing} mm and {other.name} of {other.spacing} mm"
            )
        if np.abs(np.subtract((*other.row, *other.column), (*first.row, *first.column))).max() > _SAME_DIRECTION:
            raise _fault(
                "orientation",
                f"{first.name} and {other.name} are oriented differently; expected parallel slices. "
                "Leave localizers and reformatted images out of the series",
            )


def _check_even(gaps: NDArray[np.float64], names: Sequence[str]) -> None:
    same = np.flatnonzero(gaps < _SAME_PLACE)
    if len(same):
        raise _fault(
            "duplicate",
            f"{names[same[0]]} and {names[same[0] + 1]} lie in one place, and {len(same)} slices in all share theirs; "
            "expected one slice a place. A series of several volumes (time, echoes, b-values) is sent volume by volume",
        )
    median = float(np.quantile(gaps, 0.5, method="lower"))  # of two distances the smaller is a step without a gap
    off = np.flatnonzero(np.abs(gaps - median) > _EVEN * median)
    if not len(off):
        return
    at = int(off[0])
    where = f"between {names[at]} and {names[at + 1]} are {gaps[at]:.4g} mm, elsewhere {median:.4g} mm"
    if gaps[at] > 1.5 * median:
        missing = round(gaps[at] / median) - 1
        raise _fault("gap", f"{where}: {missing} missing slice(s). Send the whole series")
    raise _fault("uneven", f"{where}; expected even distances (to {_EVEN:.0%}). Resample the series first")


def _check_upright(
    positions: NDArray[np.float64], normal: NDArray[np.float64], step: NDArray[np.float64], pixel: float
) -> None:
    along = positions - positions[0]
    drift = np.linalg.norm(along - np.outer(along @ normal, normal), axis=1)
    if drift.max() > _DRIFT * pixel:
        angle = np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1)))
        raise _fault(
            "tilt",
            f"the slices drift by {drift.max():.3g} mm sideways (a tilt of {angle:.1f}°); expected a stack along its "
            f"normal, to {_DRIFT} pixel. Correct the gantry tilt by resampling first",
        )
