"""Intensity normalisation of prepared images: nnU-Net's schemes, one function each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mednext_edge.registry import Registry
from mednext_edge.task import Normalization

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
# nnU-Net's guard against a constant image.
_SMALLEST_SD = 1e-8

Scale = Callable[[Image, Normalization, Mask | None], None]
"""Normalises one channel [*spatial] in place; the mask is given where the statistics are to be taken inside it."""
SCHEMES: Registry[Scale] = Registry("normalisation")


def brain_mask(voxels: Image) -> Mask:
    """What is non-zero in any channel, with its holes filled."""
    from scipy import ndimage

    filled: Mask = ndimage.binary_fill_holes((voxels != 0).any(axis=0))
    return filled


def normalize(voxels: Image, entries: tuple[Normalization, ...], mask: Mask | None) -> None:
    """Normalise [C, *spatial] in place, one entry a channel; a masked channel becomes 0 outside the mask."""
    for channel, entry in zip(voxels, entries, strict=True):
        inside = mask if entry.masked and mask is not None and mask.any() else None
        SCHEMES[entry.scheme](channel, entry, inside)
        if inside is not None:
            channel[~inside] = 0


def _zscore(channel: Image, entry: Normalization, mask: Mask | None) -> None:
    values = channel if mask is None else channel[mask]
    # float64, since the mean of millions of large values is off in float32.
    mean, sd = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    channel -= np.float32(mean)
    channel /= np.float32(max(sd, _SMALLEST_SD))


def _ct(channel: Image, entry: Normalization, mask: Mask | None) -> None:
    np.clip(channel, entry.lower, entry.upper, out=channel)
    channel -= np.float32(entry.mean)
    channel /= np.float32(max(entry.sd, _SMALLEST_SD))


def _rescale(channel: Image, entry: Normalization, mask: Mask | None) -> None:
    values = channel if mask is None else channel[mask]
    low, high = values.min(), values.max()
    channel -= low
    channel /= np.float32(max(float(high) - float(low), _SMALLEST_SD))


def _none(channel: Image, entry: Normalization, mask: Mask | None) -> None:
    """As it is."""


for _name, _scale in (("zscore", _zscore), ("ct", _ct), ("rescale", _rescale), ("none", _none)):
    SCHEMES.add(_name, _scale)
