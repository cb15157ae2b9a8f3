"""How well one label map fits another: overlap, surface distance, agreement.

Empty masks follow nnU-Net: a class that is in neither map has no value (NaN) and is left out of
every mean; a class that is in one map only has the value 0. So false positives in a case without
the structure count against the prediction, and correct silence counts for nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mednext_edge.errors import DataError
from mednext_edge.evaluation.classes import CLASS_METRICS, ClassMetric
from mednext_edge.registry import Registry, unknown_name

Mask = NDArray[np.bool_]
Labels = NDArray[np.generic]
"""A label map; any integer type."""

NSD_TOLERANCE_MM = 1.0


@dataclass(frozen=True)
class Metric:
    """A figure of merit of one class in one case.

    Attributes:
        title: for tables.
        value: (prediction, reference, spacing) -> 0..1, or NaN; masks of one shape, spacing in mm per axis.
    """

    title: str
    value: Callable[[Mask, Mask, Sequence[float]], float]


METRICS: Registry[Metric] = Registry("metric")


def dice(prediction: Mask, reference: Mask, spacing: Sequence[float] = ()) -> float:
    """Dice coefficient 2|A and B| / (|A| + |B|) (Dice 1945); spacing has no part in it.

    Raises:
        DataError: the shapes differ.
    """
    if not _comparable(prediction, reference):
        return _without_surface(prediction, reference)
    from monai.metrics import compute_dice

    a, b, _ = _prepare(prediction, reference, spacing)
    return float(compute_dice(_tensor(a), _tensor(b), include_background=True, ignore_empty=False))


def surface_dice(
    prediction: Mask, reference: Mask, spacing: Sequence[float], tolerance: float = NSD_TOLERANCE_MM
) -> float:
    """Normalised surface Dice (Nikolov et al., arXiv 1809.04430): the part of both boundaries within the tolerance.

    A boundary is the set of a mask's voxels that touch the outside by a face, each counted once, as
    in MONAI's default; distances are Euclidean between voxel centres, in mm. Axes of length 1 are no
    axes: a single slice is judged by its contour.

    Args:
        spacing: voxel size in mm along each axis.
        tolerance: in mm.

    Raises:
        DataError: the shapes differ, or the spacing does not fit them.
    """
    if len(spacing) != prediction.ndim or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise DataError(f"found a spacing of {tuple(spacing)} mm for a map of shape {prediction.shape}")
    if not _comparable(prediction, reference):
        return _without_surface(prediction, reference)
    from monai.metrics import compute_surface_dice

    a, b, spacing = _prepare(prediction, reference, spacing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of a call of its own
        found = compute_surface_dice(
            _tensor(a), _tensor(b), [tolerance], include_background=True, spacing=list(spacing)
        )
    return float(found)


def iou(prediction: Mask, reference: Mask, spacing: Sequence[float] = ()) -> float:
    """Intersection over union |A and B| / |A or B| (Jaccard 1901); spacing has no part in it.

    Raises:
        DataError: the shapes differ.
    """
    if not _comparable(prediction, reference):
        return _without_surface(prediction, reference)
    return float(np.count_nonzero(prediction & reference) / np.count_nonzero(prediction | reference))


METRICS.add("dice", Metric("Dice", dice))
METRICS.add("iou", Metric("IoU", iou))
METRICS.add("nsd", Metric("surface Dice at 1 mm", surface_dice))


def choose_metric(kind: str, name: str | None) -> str:
    """The name of a metric for a kind of network; the first of them where none is named.

    Raises:
        UnknownNameError: no such metric for this kind.
    """
    known: Registry[Metric] | Registry[ClassMetric] = METRICS if kind == "segmentation" else CLASS_METRICS
    if name is None:
        return next(iter(known))
    _ = known[name]
    return name


def title_of(name: str | None) -> str:
    """For tables; of no name that of the first metric of a segmentation."""
    name = name or next(iter(METRICS))
    return CLASS_METRICS[name].title if name in CLASS_METRICS else METRICS[name].title


def check_metric(name: str | None) -> None:
    """Raises UnknownNameError for what is a metric of no kind of network."""
    if name is not None and name not in CLASS_METRICS and name not in METRICS:
        raise unknown_name("metric", name, [*METRICS, *CLASS_METRICS])


def agreement(first: Labels, second: Labels) -> tuple[float, float | None]:
    """Part of equal voxels: of all, and of those that are foreground in either map (None without foreground).

    Raises:
        DataError: the shapes differ, or there is no voxel.
    """
    if first.shape != second.shape or not first.size:
        raise DataError(f"found label maps of shapes {first.shape} and {second.shape}; expected one shape, not empty")
    equal = first == second
    foreground = (first != 0) | (second != 0)
    count = int(foreground.sum())
    return float(equal.mean()), float(equal[foreground].mean()) if count else None


def _comparable(prediction: Mask, reference: Mask) -> bool:
    """Whether both masks have voxels."""
    if prediction.shape != reference.shape:
        raise DataError(f"found a prediction of shape {prediction.shape} for a reference of {reference.shape}")
    return bool(prediction.any() and reference.any())


def _without_surface(prediction: Mask, reference: Mask) -> float:
    return 0.0 if prediction.any() or reference.any() else math.nan


def _prepare(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> tuple[Mask, Mask, tuple[float, ...]]:
    """Both masks without axes of length 1, cut to the box that holds them: neither metric looks beyond it."""
    kept = tuple(axis for axis, size in enumerate(prediction.shape) if size > 1)
    if len(kept) < 2:  # MONAI takes two axes at least
        kept = tuple(range(prediction.ndim))
    shape = tuple(prediction.shape[axis] for axis in kept)
    a, b = prediction.reshape(shape), reference.reshape(shape)
    union = a | b
    box = []
    for axis in range(union.ndim):
        filled = np.flatnonzero(union.any(axis=tuple(i for i in range(union.ndim) if i != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return a[tuple(box)], b[tuple(box)], tuple(float(spacing[axis]) for axis in kept) if spacing else ()


def _tensor(mask: Mask) -> torch.Tensor:
    """[*spatial] -> [1, 1, *spatial]."""
    return torch.from_numpy(np.ascontiguousarray(mask))[None, None]
