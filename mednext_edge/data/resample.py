"""Resampling of one array to another shape, as nnU-Net does it.

Voxels are boxes, so that the outer borders of both grids coincide (scipy's `grid_mode`, PyTorch's
`align_corners=False`); beyond the border the edge voxel goes on. Where one axis is far coarser than the
others it is resampled apart, with nearest neighbours, since nothing can be interpolated between its slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

Shape = tuple[int, ...]
Order = Literal[0, 1, 2, 3, 4, 5]
Scalar = TypeVar("Scalar", bound=np.generic)
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def coarse_axis(spacing: Sequence[float], target: Sequence[float], threshold: float) -> int | None:
    """The axis to resample apart: the single coarsest of `spacing`, or else of `target`, if over `threshold`.

    None where the grids are near isotropic, or where more than one axis is equally coarse.
    """
    for sizes in (spacing, target):
        if max(sizes) > threshold * min(sizes):
            coarsest = [axis for axis, size in enumerate(sizes) if size == max(sizes)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def resample(array: NDArray[np.float32], shape: Shape, order: int, apart: int | None = None) -> NDArray[np.float32]:
    """A real-valued array on another grid; the array itself where the shape is the same already.

    Args:
        array: [*spatial] float32.
        shape: the new shape.
        order: of the spline, 0..5. Values stay within the range of the input, also for the orders that overshoot.
        apart: an axis that takes the nearest slice instead, the others being interpolated slice by slice.
    """
    if array.shape == shape:
        return array
    if apart is None:
        whole: NDArray[np.float32] = _interpolate(array[np.newaxis], shape, order)[0]
        return whole
    slices = np.moveaxis(array, apart, 0)
    plane = tuple(n for axis, n in enumerate(shape) if axis != apart)
    if slices.shape[1:] != plane:
        slices = _interpolate(slices, plane, order)
    resampled: NDArray[np.float32] = np.moveaxis(_nearest_slices(slices, shape[apart]), 0, apart)
    return resampled


def resample_labels(labels: NDArray[Scalar], shape: Shape, order: int, apart: int | None = None) -> NDArray[Scalar]:
    """A label map on another grid: each label's mask is resampled by itself and holds where it reaches one half.

    Where two labels reach it the larger value wins, where none does the voxel is background (0), as in nnU-Net.
    `order=0` takes the nearest voxel instead.
    """
    if labels.shape == shape:
        return labels
    if order == 0:
        for axis, n in enumerate(shape):
            labels = np.moveaxis(_nearest_slices(np.moveaxis(labels, axis, 0), n), 0, axis)
        return labels
    resampled = np.zeros(shape, labels.dtype)
    for value in np.unique(labels):
        resampled[resample((labels == value).astype(np.float32), shape, order, apart) >= 0.5] = value
    return resampled


def _interpolate(stack: NDArray[np.float32], shape: Shape, order: int) -> NDArray[np.float32]:
    """[N, *spatial] -> [N, *shape], each of the N by itself."""
    if order == 1:
        # A copy, because the strides of a flipped axis are negative, which torch does not take.
        source = torch.from_numpy(np.array(stack, np.float32, order="C")).unsqueeze(1)
        scaled = torch.nn.functional.interpolate(source, size=shape, mode=_LINEAR[len(shape)], align_corners=False)
        linear: NDArray[np.float32] = scaled.squeeze(1).numpy()
        return linear
    from scipy import ndimage

    resampled = np.empty((len(stack), *shape), np.float32)
    for source_array, target in zip(stack, resampled, strict=True):
        zoom = [new / old for new, old in zip(shape, source_array.shape, strict=True)]
        ndimage.zoom(source_array, zoom, output=target, order=cast(Order, order), mode="nearest", grid_mode=True)
        np.clip(target, source_array.min(), source_array.max(), out=target)
    return resampled


def _nearest_slices(slices: NDArray[Scalar], count: int) -> NDArray[Scalar]:
    """`count` slices along axis 0, each the one whose box holds the new centre."""
    old = len(slices)
    if old == count:
        return slices
    centres = (np.arange(count) + 0.5) * (old / count)
    # Scipy rounds the voxel coordinate, which is half a voxel less, up from .5: the box is closed below.
    nearest: NDArray[Scalar] = slices[np.clip(np.floor(centres).astype(np.intp), 0, old - 1)]
    return nearest
