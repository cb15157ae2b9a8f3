"""nnU-Net's preprocessing as two functions: `prepare` from image to network input, `restore` back to labels.

Order: turn to the recipe's orientation, transpose, crop to the non-zero box, normalise, resample (nnU-Net v2;
v1 resamples before it normalises). Turning and transposing only permute and flip axes, so that `restore` puts
every voxel back where it came from. (F. Isensee et al., "nnU-Net", Nature Methods 18, 2021, supplement.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from mednext_edge.data.resample import coarse_axis, resample, resample_labels
from mednext_edge.data.volume import Volume
from mednext_edge.errors import DataError
from mednext_edge.registry import Registry
from mednext_edge.task import Normalization, Preprocessing

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
# nnU-Net's guard against a constant image.
_SMALLEST_SD = 1e-8


@dataclass(frozen=True)
class Grid:
    """How an image's grid became the network's; what `restore` undoes.

    Attributes:
        turn: nibabel orientation transform of the (x, y, z) axes to the recipe's orientation.
        unturn: its inverse.
        transpose: permutation of the turned (z, y, x) axes.
        full: shape after turning and transposing.
        box: what of `full` was kept.
        spacing: mm, of the kept box.
        target: mm, of the network's grid.
        shape: of the network's grid.
        apart: axis that is resampled with nearest neighbours; None for no such axis.
    """

    turn: NDArray[np.float64]
    unturn: NDArray[np.float64]
    transpose: tuple[int, ...]
    full: tuple[int, ...]
    box: tuple[slice, ...]
    spacing: tuple[float, ...]
    target: tuple[float, ...]
    shape: tuple[int, ...]
    apart: int | None

    @property
    def cropped(self) -> tuple[int, ...]:
        """Shape of the kept box."""
        return tuple(s.stop - s.start for s in self.box)


@dataclass(frozen=True)
class Prepared:
    """A network's input, of a 2-D network too: one slice a position of the first spatial axis.

    Attributes:
        image: [C, *grid.shape] float32, normalised.
        labels: [*grid.shape] uint8 or uint16; None where there were none.
        grid: the way back.
    """

    image: Image
    labels: NDArray[np.generic] | None
    grid: Grid


def prepare(image: Volume, recipe: Preprocessing, labels: Volume | None = None) -> Prepared:
    """Bring an image [C, Z, Y, X], and its labels [Z, Y, X], onto the network's grid and scale.

    Raises:
        DataError: not four axes, another number of channels than the recipe has, or labels on another grid.
    """
    if image.array.ndim != 4:
        raise DataError(f"found an image of shape {image.array.shape}; expected [channels, z, y, x]")
    expected = len(recipe.normalization)
    if len(image.array) != expected:
        raise DataError(f"found an image of {len(image.array)} channels; expected {expected}, one a normalisation")
    if labels is not None and labels.array.shape != image.spatial:
        raise DataError(f"found labels of shape {labels.array.shape} for an image of shape {image.spatial}")
    turn, unturn, spacing = _orientation(image, recipe)
    voxels = np.stack([_turn(c, turn).transpose(recipe.transpose) for c in image.array]).astype(np.float32, copy=False)
    box = _nonzero_box(voxels) if recipe.crop_nonzero else tuple(slice(0, n) for n in voxels.shape[1:])
    grid = _grid(turn, unturn, voxels.shape[1:], box, spacing, recipe)
    cropped = voxels[(slice(None), *box)]
    mask = _brain(cropped) if any(n.masked for n in recipe.normalization) else None

    def resized(stack: Image) -> Image:
        if grid.shape == grid.cropped:
            return stack
        return np.stack([resample(c, grid.shape, recipe.image_order, grid.apart) for c in stack])

    if recipe.normalize_after_resampling:
        small = None if mask is None else resample_labels(mask.astype(np.uint8), grid.shape, 1, grid.apart) > 0
        network_input = _normalize(resized(cropped), recipe.normalization, small)
    else:
        network_input = resized(_normalize(cropped, recipe.normalization, mask))
    network_labels = None
    if labels is not None:
        kept = _turn(labels.array, turn).transpose(recipe.transpose)[box]
        network_labels = np.ascontiguousarray(resample_labels(kept, grid.shape, recipe.label_order, grid.apart))
    return Prepared(np.ascontiguousarray(network_input), network_labels, grid)


def restore(scores: Image, prepared: Prepared) -> NDArray[np.generic]:
    """Class scores on the network's grid -> the best class of every voxel of the image, [Z, Y, X] uint8 or uint16.

    Scores are resampled class by class while the best so far is kept, so that memory does not grow with the
    number of classes. What was cropped away is background, 0.

    Args:
        scores: [classes, *grid.shape], probabilities or logits.
        prepared: what `prepare` made of the image.

    Raises:
        DataError: the shape is not that of the prepared image.
    """
    grid = prepared.grid
    if scores.ndim != 4 or scores.shape[1:] != grid.shape:
        raise DataError(f"found scores of shape {scores.shape}; expected [classes, {', '.join(map(str, grid.shape))}]")
    kind = np.uint8 if len(scores) <= 256 else np.uint16
    best = resample(scores[0], grid.cropped, 1, grid.apart).copy()
    winner = np.zeros(grid.cropped, kind)
    for value in range(1, len(scores)):
        rival = resample(scores[value], grid.cropped, 1, grid.apart)
        winner[rival > best] = value
        np.maximum(best, rival, out=best)
    full = np.zeros(grid.full, kind)
    full[grid.box] = winner
    return np.ascontiguousarray(_turn(full.transpose(np.argsort(grid.transpose)), grid.unturn))


# --- grids -----------------------------------------------------------------------------------------


def _orientation(
    image: Volume, recipe: Preprocessing
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[float, ...]]:
    """The turn to the recipe's orientation, its inverse, and the spacing after turning and transposing."""
    own = nib.orientations.io_orientation(image.affine)
    wanted = own if recipe.orientation is None else nib.orientations.axcodes2ornt(tuple(recipe.orientation))
    turn = nib.orientations.ornt_transform(own, wanted)
    unturn = nib.orientations.ornt_transform(wanted, own)
    turned_xyz = [0.0] * 3
    for axis, size in enumerate(reversed(image.spacing)):
        turned_xyz[int(turn[axis, 0])] = size
    return turn, unturn, tuple(turned_xyz[2 - axis] for axis in recipe.transpose)


def _turn(array: NDArray[np.generic], turn: NDArray[np.float64]) -> NDArray[np.generic]:
    """Permute and flip the axes of [Z, Y, X] by a transform of (x, y, z)."""
    turned: NDArray[np.generic] = nib.orientations.apply_orientation(array.T, turn).T
    return turned


def _nonzero_box(voxels: Image) -> tuple[slice, ...]:
    """Bounding box of what is non-zero in any channel of [C, *spatial]; everything where all is zero."""
    nonzero = (voxels != 0).any(axis=0)
    box = []
    for axis, size in enumerate(nonzero.shape):
        others = tuple(a for a in range(nonzero.ndim) if a != axis)
        hits = np.flatnonzero(nonzero.any(axis=others))
        box.append(slice(int(hits[0]), int(hits[-1]) + 1) if len(hits) else slice(0, size))
    return tuple(box)


def _grid(
    turn: NDArray[np.float64],
    unturn: NDArray[np.float64],
    full: tuple[int, ...],
    box: tuple[slice, ...],
    spacing: tuple[float, ...],
    recipe: Preprocessing,
) -> Grid:
    # The recipe of a 2-D network has no spacing for the axis across its slices.
    wanted = spacing if recipe.spacing is None else (spacing[: len(spacing) - len(recipe.spacing)] + recipe.spacing)
    cropped = [s.stop - s.start for s in box]
    shape = tuple(max(1, round(n * own / new)) for n, own, new in zip(cropped, spacing, wanted, strict=True))
    apart = coarse_axis(spacing, wanted, recipe.anisotropy_threshold)
    return Grid(turn, unturn, recipe.transpose, full, box, spacing, wanted, shape, apart)


# --- intensities -----------------------------------------------------------------------------------

Scale = Callable[[Image, Normalization, Mask | None], None]
"""Normalises one channel [*spatial] in place; the mask is given where the statistics are to be taken inside it."""
SCHEMES: Registry[Scale] = Registry("normalisation")


def _brain(voxels: Image) -> Mask:
    """What is non-zero in any channel, with its holes filled."""
    from scipy import ndimage

    filled: Mask = ndimage.binary_fill_holes((voxels != 0).any(axis=0))
    return filled


def _normalize(voxels: Image, entries: tuple[Normalization, ...], mask: Mask | None) -> Image:
    """A normalised copy of [C, *spatial]; a masked channel is 0 outside the mask."""
    scaled = voxels.copy()
    for channel, entry in zip(scaled, entries, strict=True):
        inside = mask if entry.masked and mask is not None and mask.any() else None
        SCHEMES[entry.scheme](channel, entry, inside)
        if inside is not None:
            channel[~inside] = 0
    return scaled


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
