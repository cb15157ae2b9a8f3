"""Calibration patches: what the engine will see, drawn from the user's own images.

Patches have the shape of the sliding window and come from preprocessed images; every case is represented before
one is used twice, and two thirds of the patches are centred on a foreground voxel, so that the rare classes take
part in the ranges.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mednext_edge.data.dataset import Case
from mednext_edge.data.recipe import Prepared, prepare
from mednext_edge.errors import DataError
from mednext_edge.quantize.suitability import Suitability
from mednext_edge.task import Task

Array = NDArray[np.float32]
FOREGROUND = 2 / 3
# About 16 patches of 80^3, and never so few that one image decides, nor so many that it takes an hour.
VOXELS, FEWEST, MOST = 2**23, 8, 32
ESTIMATOR = "least-error"
FLOAT_PATCHES = 4
"""How many patches show whether float16 holds every activation."""


@dataclass(frozen=True)
class CalibrationSet:
    """Patches [1, C, *patch] with the names of the cases they came from and a digest of all voxels."""

    patches: tuple[Array, ...]
    cases: tuple[str, ...]
    sha256: str
    foreground: int
    """How many patches are known to hold foreground; 0 when the cases have no labels."""
    notes: tuple[str, ...] = ()
    """What speaks against these images, a sentence each."""
    estimator: str = ESTIMATOR
    """How ranges are taken from them, a name in `ranges.ESTIMATORS`."""


def default_count(patch: Sequence[int]) -> int:
    """How many patches to calibrate on when the user does not say."""
    return min(MOST, max(FEWEST, VOXELS // math.prod(patch)))


def draw(
    cases: Sequence[Case],
    task: Task,
    count: int,
    *,
    patch: tuple[int, ...] | None = None,
    seed: int = 0,
    estimator: str = ESTIMATOR,
    progress: Callable[[int, int], None] | None = None,
) -> CalibrationSet:
    """Draw calibration patches.

    Args:
        cases: images, with labels where they are known.
        task: preprocessing and number of channels.
        count: patches to draw.
        patch: spatial size; None takes the task's.
        seed: of cases and positions.
        estimator: how ranges are to be taken from the patches, a name in `ranges.ESTIMATORS`.
        progress: called as (patches done, patches in all).

    Raises:
        DataError: no case, an image that does not fit the task or is not finite, or images that hold one value only.
    """
    if not cases:
        raise DataError("found no calibration image; expected at least one, better twenty or more")
    size = patch or task.inference.patch
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(cases))
    digest = hashlib.sha256()
    patches: list[Array] = []
    names: list[str] = []
    foreground = 0
    suitability = Suitability(task)
    share, rest = divmod(count, len(cases))
    for position, index in enumerate(order[:count]):
        case = cases[int(index)]
        prepared = prepare(case.image(), task.preprocessing, case.labels() if case.labels is not None else None)
        suitability.see(case.name, prepared)
        for _ in range(share + (position < rest)):
            cut, holds = _cut(prepared, size, task.model.spatial_dims, rng)
            foreground += holds
            digest.update(cut.tobytes())
            patches.append(cut)
            names.append(case.name)
            if progress is not None:
                progress(len(patches), count)
    if all(float(p.std()) == 0 for p in patches):
        why = "; ".join(("expected images with contrast", *suitability.notes()))
        raise DataError(f"every calibration patch holds one value only; {why}")
    cases_drawn = tuple(dict.fromkeys(names))
    return CalibrationSet(tuple(patches), cases_drawn, digest.hexdigest(), foreground, suitability.notes(), estimator)


def _cut(prepared: Prepared, patch: tuple[int, ...], dims: int, rng: np.random.Generator) -> tuple[Array, bool]:
    """One patch [1, C, *patch], and whether it is known to hold foreground."""
    image, labels = prepared.image, prepared.labels
    # What the patch is to be centred on; None is anywhere.
    sought = labels if labels is not None and labels.any() and rng.random() < FOREGROUND else None
    if dims == 2 and image.ndim == 4:
        z = int(rng.integers(image.shape[1]) if sought is None else rng.choice(np.flatnonzero(sought.any(axis=(1, 2)))))
        image = image[:, z]
        labels, sought = (None if array is None else array[z] for array in (labels, sought))
    spatial = image.shape[1:]
    if sought is None:
        centre = [int(rng.integers(n)) for n in spatial]
    else:
        centre = [int(i) for i in np.unravel_index(int(rng.choice(np.flatnonzero(sought))), spatial)]
    window, padding = [], [(0, 0)]
    for c, n, size in zip(centre, spatial, patch, strict=True):
        start = min(max(c - size // 2, 0), max(n - size, 0))
        window.append(slice(start, min(start + size, n)))
        missing = max(size - n, 0)
        padding.append((missing // 2, missing - missing // 2))
    cut = np.pad(image[(slice(None), *window)], padding)
    holds = labels is not None and bool(labels[tuple(window)].any())
    return np.ascontiguousarray(cut[np.newaxis], dtype=np.float32), holds
