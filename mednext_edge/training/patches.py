"""Where a training patch lies, and cutting it out: only the voxels that are needed are touched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST_PLACES = 10_000
"""Foreground voxels remembered for each class of a case, as in nnU-Net."""

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Sample:
    """One prepared case.

    Attributes:
        image: [C, Z, Y, X] float32; may be mapped from a file.
        labels: [Z, Y, X].
        classes: the foreground classes that occur.
        places: some voxels of each of them, [n, 3].
    """

    image: Array
    labels: Array
    classes: tuple[int, ...]
    places: tuple[NDArray[np.int32], ...]

    @classmethod
    def of(cls, image: Array, labels: Array, rng: np.random.Generator) -> Sample:
        places = []
        classes = tuple(int(v) for v in np.flatnonzero(np.bincount(labels.ravel())) if v)
        for value in classes:
            found = np.flatnonzero(labels == value)
            if len(found) > MOST_PLACES:
                found = np.sort(rng.choice(found, MOST_PLACES, replace=False))
            places.append(np.stack(np.unravel_index(found, labels.shape), axis=1).astype(np.int32))
        return cls(image, labels, classes, tuple(places))


def choose_centre(
    sample: Sample, patch: tuple[int, ...], *, foreground: bool, rng: np.random.Generator
) -> tuple[int, ...]:
    """A voxel (z, y, x) that the patch is centred on; voxel n//2 of a side n is its centre.

    On foreground first a class is drawn, then a voxel of it, so that small structures are as frequent as large
    ones. The patch lies within the image; along an axis where the image is smaller, the image lies in its middle. Of a
    2-D patch the z is that of any slice, or of the drawn voxel's.
    """
    target: NDArray[np.int32] | None = None
    if foreground and sample.places:
        places = sample.places[int(rng.integers(len(sample.places)))]
        target = places[int(rng.integers(len(places)))]
    sides = (1,) * (3 - len(patch)) + patch
    centre = []
    for axis, (n, side) in enumerate(zip(sample.labels.shape, sides, strict=True)):
        room = n - side
        if room <= 0:
            start = -(-room // 2)
        elif target is None:
            start = int(rng.integers(room + 1))
        else:
            start = min(max(int(target[axis]) - side // 2, 0), room)
        centre.append(start + side // 2)
    return tuple(centre)


def cut(array: Array, centre: Sequence[int], sides: Sequence[int]) -> Tensor:
    """[..., *spatial] -> [..., *sides] around a voxel, with zeros where the array ends."""
    lead = array.ndim - len(sides)
    shape = array.shape[lead:]
    starts = [c - side // 2 for c, side in zip(centre, sides, strict=True)]
    inside = [slice(max(0, s), max(0, min(n, s + side))) for s, side, n in zip(starts, sides, shape, strict=True)]
    found = np.zeros((*array.shape[:lead], *sides), array.dtype)
    where = [slice(i.start - s, i.start - s + max(0, i.stop - i.start)) for i, s in zip(inside, starts, strict=True)]
    lead_slices = (slice(None),) * lead
    found[(*lead_slices, *where)] = array[(*lead_slices, *inside)]
    return torch.from_numpy(found.astype(np.float32, copy=False))


def reach(matrix: NDArray[np.float64], patch: Sequence[int]) -> tuple[int, ...]:
    """Sides of the box that holds every voxel which a patch sampled through `matrix` looks at."""
    half = np.abs(matrix) @ (np.asarray(patch, np.float64) / 2)
    return tuple(2 * math.ceil(h) + 2 for h in half)


def warp(region: Tensor, matrix: NDArray[np.float64], patch: Sequence[int], *, mode: str) -> Tensor:
    """Sample [C, *sides] at matrix @ (voxel - centre) + centre for every voxel of a patch -> [C, *patch].

    Args:
        mode: `bilinear` (linear along every axis) or `nearest`; zeros beyond the region.
    """
    sides = region.shape[1:]
    axes = [torch.arange(n, dtype=torch.float64) - n // 2 for n in patch]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) @ torch.from_numpy(matrix.T.copy())
    # To PyTorch's -1..1 over the outer borders of the region, last axis first.
    size = torch.tensor(sides, dtype=torch.float64)
    grid = (2 * (grid + torch.div(size, 2, rounding_mode="floor")) + 1) / size - 1
    found = torch.nn.functional.grid_sample(
        region[None], grid.flip(-1).float()[None], mode=mode, padding_mode="zeros", align_corners=False
    )
    return found[0]
