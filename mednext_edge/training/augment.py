"""nnU-Net v1's "moreDA" augmentation, which MedNeXt was trained with: probabilities, ranges, order.

Each transform has a chance for the whole patch; some have another one for each channel, and all draw the channels'
strengths apart. Cubic splines in space are replaced by linear interpolation, as nnU-Net v2 does.
(F. Isensee et al., "nnU-Net", Nature Methods 18, 2021, supplement, "Data augmentation".)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mednext_edge.data.resample import resample

Image = NDArray[np.float32]
Rng = np.random.Generator

ANISOTROPIC = 3
"""Ratio of a patch's longest side to its first from which slices are turned and scaled in their plane alone."""
TURN_3D, TURN_2D, TURN_2D_LONG = (math.radians(degrees) for degrees in (30, 180, 15))
ZOOM = (0.7, 1.4)
SPATIAL_CHANCE = 0.2


def in_plane(patch: tuple[int, ...]) -> bool:
    """Whether a patch is of thick slices, which cannot be turned out of their plane."""
    return len(patch) == 3 and max(patch) / patch[0] > ANISOTROPIC


def draw_matrix(patch: tuple[int, ...], rng: Rng) -> NDArray[np.float64] | None:
    """Where a patch's voxels look, from its centre: rotation by up to 30 degrees an axis, scaling of 0.7 to 1.4.

    In 2-D, and in the plane of thick slices, any angle; 15 degrees where the plane is more than half as long again as
    wide. None, for leaving the patch as it is, in 16 of 25 draws.
    """
    turn, scale = rng.random() < SPATIAL_CHANCE, rng.random() < SPATIAL_CHANCE
    if not (turn or scale):
        return None
    dims = len(patch)
    flat = dims == 2 or in_plane(patch)
    matrix = np.eye(dims)
    if turn:
        plane = patch[-2:]
        limit = TURN_3D if not flat else TURN_2D if max(plane) / min(plane) <= 1.5 else TURN_2D_LONG
        planes = [(dims - 2, dims - 1)] if flat else [(0, 1), (0, 2), (1, 2)]
        for a, b in planes:
            angle = rng.uniform(-limit, limit)
            rotation = np.eye(dims)
            rotation[a, a] = rotation[b, b] = math.cos(angle)
            rotation[a, b], rotation[b, a] = -math.sin(angle), math.sin(angle)
            matrix = matrix @ rotation
    if scale:
        factor = _around_one(rng, *ZOOM)
        matrix = matrix @ np.diag([1.0 if flat and axis < dims - 2 else factor for axis in range(dims)])
    return matrix


def _around_one(rng: Rng, low: float, high: float) -> float:
    """Below one as often as above."""
    return float(rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high))


def noise(channel: Image, rng: Rng, sd: float) -> Image:
    """Gaussian noise of a standard deviation that all channels share."""
    return channel + np.float32(sd) * rng.standard_normal(channel.shape, np.float32)


def blur(channel: Image, rng: Rng) -> Image:
    """Gaussian blur, sigma 0.5 to 1 voxel."""
    from scipy import ndimage

    blurred: Image = ndimage.gaussian_filter(channel, rng.uniform(0.5, 1.0), order=0)
    return blurred


def brightness(channel: Image, rng: Rng) -> Image:
    """Times 0.75 to 1.25."""
    return channel * np.float32(rng.uniform(0.75, 1.25))


def contrast(channel: Image, rng: Rng) -> Image:
    """Distances to the mean times 0.75 to 1.25, within the range there was."""
    mean = channel.mean()
    stretched: Image = (channel - mean) * np.float32(_around_one(rng, 0.75, 1.25)) + mean
    return stretched.clip(channel.min(), channel.max())


def low_resolution(channel: Image, rng: Rng, *, keep_first: bool) -> Image:
    """Down to 0.5 to 1 of the voxels an axis by nearest neighbours, and up again by cubic splines.

    Args:
        keep_first: leave the first axis, of thick slices, alone.
    """
    zoom = rng.uniform(0.5, 1.0)
    small = tuple(n if keep_first and axis == 0 else max(1, round(n * zoom)) for axis, n in enumerate(channel.shape))
    return resample(resample(channel, small, 0), channel.shape, 3)


def gamma(channel: Image, rng: Rng, *, inverted: bool) -> Image:
    """A power of 0.7 to 1.5 over the channel's range, of its negative if inverted; mean and deviation stay."""
    x = -channel if inverted else channel
    low, high, mean, sd = x.min(), x.max(), x.mean(), x.std()
    span = np.float32(high - low + 1e-7)
    x = np.power((x - low) / span, np.float32(_around_one(rng, 0.7, 1.5))) * span + low
    x = (x - x.mean()) / np.float32(x.std() + 1e-8) * sd + mean
    result: Image = (-x if inverted else x).astype(np.float32)
    return result


@dataclass(frozen=True)
class Step:
    """A change of intensities.

    Attributes:
        chance: that a patch gets it.
        each: that one channel of such a patch gets it.
        make: the change for one patch, once what its channels share is drawn.
    """

    chance: float
    each: float
    make: Callable[[Rng], Callable[[Image, Rng], Image]]


def intensity_steps(patch: tuple[int, ...]) -> tuple[Step, ...]:
    """Every change of intensities, in its order."""
    return (
        Step(0.1, 1.0, lambda rng: partial(noise, sd=rng.uniform(0, 0.1))),
        Step(0.2, 0.5, lambda rng: blur),
        Step(0.15, 1.0, lambda rng: brightness),
        Step(0.15, 1.0, lambda rng: contrast),
        Step(0.25, 0.5, lambda rng: partial(low_resolution, keep_first=in_plane(patch))),
        Step(0.1, 1.0, lambda rng: partial(gamma, inverted=True)),
        Step(0.3, 1.0, lambda rng: partial(gamma, inverted=False)),
    )


def change_intensities(image: Tensor, steps: tuple[Step, ...], rng: Rng) -> Tensor:
    """[C, *patch] -> the same shape."""
    channels = list(image.numpy())
    for step in steps:
        if rng.random() >= step.chance:
            continue
        change = step.make(rng)
        for i, channel in enumerate(channels):
            if rng.random() < step.each:
                channels[i] = change(channel, rng)
    return torch.from_numpy(np.stack(channels).astype(np.float32, copy=False))


def draw_flips(mirror_axes: tuple[int, ...], rng: Rng) -> tuple[int, ...]:
    """The spatial axes to flip: each of those that may be with a chance of one half."""
    return tuple(axis for axis in mirror_axes if rng.random() < 0.5)
