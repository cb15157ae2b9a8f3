"""What nnU-Net looks at in a data set before it plans: voxel sizes, and intensities of CT foregrounds.

(F. Isensee et al., "nnU-Net", Nature Methods 18, 2021, supplement, "Rule-based parameters".)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mednext_edge.task import Normalization

SAME_GRID = 0.05
"""Voxel sizes that differ by less than this part are left as they are."""
ANISOTROPY = 3.0
VOXELS_A_CASE = 10_000

Spacing = tuple[float, ...]


def choose_spacing(spacings: Sequence[Spacing], shapes: Sequence[tuple[int, ...]]) -> Spacing | None:
    """The voxel size to train at, mm; None where the images share one grid already.

    The median of every axis; where one axis is far coarser than the others, and has far fewer voxels, the tenth
    percentile of that axis, but no less than the others' size.

    Args:
        spacings, shapes: of the images, along the same axes.
    """
    table, sizes = np.array(spacings, np.float64), np.array(shapes, np.float64)
    if (table.max(0) <= (1 + SAME_GRID) * table.min(0)).all():
        return None
    target, size = np.median(table, 0), np.median(sizes, 0)
    worst = int(target.argmax())
    others = [axis for axis in range(len(target)) if axis != worst]
    if target[worst] > ANISOTROPY * target[others].max() and size[worst] * ANISOTROPY < size[others].min():
        target[worst] = max(float(np.percentile(table[:, worst], 10)), float(target[others].max()))
    return tuple(float(value) for value in target)


class ForegroundIntensities:
    """Collects foreground voxels of one channel over the cases, as many of each."""

    def __init__(self) -> None:
        self._found: list[NDArray[np.float32]] = []

    def add(self, channel: NDArray[np.generic], labels: NDArray[np.generic]) -> None:
        """channel, labels: [Z, Y, X]."""
        voxels = channel[np.asarray(labels, np.int64) > 0]
        if len(voxels) > VOXELS_A_CASE:
            voxels = np.random.default_rng(len(self._found)).choice(voxels, VOXELS_A_CASE)
        self._found.append(voxels.astype(np.float32))

    def normalization(self) -> Normalization | None:
        """nnU-Net's for CT: clip to the percentiles 0.5 and 99.5, z-score; None without foreground."""
        voxels = np.concatenate([*self._found, np.empty(0, np.float32)])
        if not len(voxels):
            return None
        low, high = np.percentile(voxels, (0.5, 99.5))
        return Normalization(
            scheme="ct",
            mean=float(voxels.mean()),
            sd=max(float(voxels.std()), 1e-8),
            lower=float(low),
            upper=float(high),
        )
