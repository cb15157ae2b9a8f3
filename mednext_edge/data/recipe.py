"""nnU-Net's preprocessing as two functions: `prepare` from image to network input, `restore` back to labels.

Order: take the colours, turn to the recipe's orientation, transpose, crop to the non-zero box, normalise, resample or
stretch (nnU-Net v2; v1 resamples before it normalises). Turning and transposing only permute and flip axes, so that
`restore` puts every voxel back where it came from. (F. Isensee et al., "nnU-Net", Nature Methods 18, 2021, supplement.)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from mednext_edge.data.colour import as_colour
from mednext_edge.data.intensity import Image, brain_mask, normalize
from mednext_edge.data.resample import coarse_axis, resample, resample_labels
from mednext_edge.data.volume import Volume
from mednext_edge.errors import DataError
from mednext_edge.task import Paint, Preprocessing


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
    channels = image.array if recipe.colour is None else as_colour(image.array.astype(np.float32), recipe.colour)
    expected = len(recipe.normalization)
    if len(channels) != expected:
        raise DataError(f"found an image of {len(channels)} channels; expected {expected}, one a normalisation")
    if labels is not None:
        _check_same_grid(image, labels)
    turn, unturn, spacing = _orientation(image, recipe)
    voxels = np.stack([_turn(c, turn).transpose(recipe.transpose) for c in channels]).astype(np.float32, copy=False)
    box = _nonzero_box(voxels) if recipe.crop_nonzero else tuple(slice(0, n) for n in voxels.shape[1:])
    grid = _grid(turn, unturn, voxels.shape[1:], box, spacing, recipe)
    cropped = voxels[(slice(None), *box)]
    mask = brain_mask(cropped) if any(n.masked for n in recipe.normalization) else None

    def resized(stack: Image) -> Image:
        if grid.shape == grid.cropped:
            return stack
        return np.stack([resample(c, grid.shape, recipe.image_order, grid.apart) for c in stack])

    # `voxels` is a copy, so that normalising in place leaves the caller's image alone.
    if recipe.normalize_after_resampling:
        network_input = resized(cropped)
        if mask is not None:
            mask = resample_labels(mask.astype(np.uint8), grid.shape, 1, grid.apart) > 0
        normalize(network_input, recipe.normalization, mask)
    else:
        normalize(cropped, recipe.normalization, mask)
        network_input = resized(cropped)
    network_labels = None
    if labels is not None:
        kept = _turn(labels.array, turn).transpose(recipe.transpose)[box]
        network_labels = np.ascontiguousarray(resample_labels(kept, grid.shape, recipe.label_order, grid.apart))
    return Prepared(np.ascontiguousarray(network_input), network_labels, grid)


def restore(scores: Image, prepared: Prepared, paints: Sequence[Paint] = ()) -> NDArray[np.generic]:
    """Scores on the network's grid -> the label of every voxel of the image, [Z, Y, X] uint8 or uint16.

    Scores are resampled one by one while what was found so far is kept, so that memory does not grow with their
    number. What was cropped away is background, 0.

    Args:
        scores: [classes, *grid.shape], probabilities or logits, of which the best class wins; or logits of regions.
        prepared: what `prepare` made of the image.
        paints: of regions, what each leaves where its logit is above 0, over those before it.

    Raises:
        DataError: the shape is not that of the prepared image.
    """
    grid = prepared.grid
    if scores.ndim != 4 or scores.shape[1:] != grid.shape:
        raise DataError(f"found scores of shape {scores.shape}; expected [classes, {', '.join(map(str, grid.shape))}]")
    highest = max((paint.value for paint in paints), default=len(scores) - 1)
    found = np.zeros(grid.cropped, np.uint8 if highest < 256 else np.uint16)
    for paint in paints:
        found[resample(scores[paint.output], grid.cropped, 1, grid.apart) > 0] = paint.value
    if not paints:
        best = resample(scores[0], grid.cropped, 1, grid.apart).copy()
        for value in range(1, len(scores)):
            rival = resample(scores[value], grid.cropped, 1, grid.apart)
            found[rival > best] = value
            np.maximum(best, rival, out=best)
    full = np.zeros(grid.full, found.dtype)
    full[grid.box] = found
    return np.ascontiguousarray(_turn(full.transpose(np.argsort(grid.transpose)), grid.unturn))


def _check_same_grid(image: Volume, labels: Volume) -> None:
    if labels.array.shape != image.spatial:
        raise DataError(
            f"found labels of shape {labels.array.shape} for an image of shape {image.spatial}; expected the same. "
            "Resample the labels to the image, or give the ones that belong to it"
        )
    # Rounded headers differ a little; a flipped or lost affine moves a corner by far more than half a voxel.
    corners = np.array([(*c, 1) for c in itertools.product(*((0, n - 1) for n in reversed(image.spatial)))])
    off = float(np.linalg.norm(((labels.affine - image.affine) @ corners.T)[:3], axis=0).max())
    if off > min(image.spacing) / 2:
        raise DataError(
            f"found labels whose affine puts a corner {off:.3g} mm away from the image's; expected the same grid. "
            "Resample the labels to the image, or give them its header where only the header is wrong"
        )


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
    if recipe.size is not None:
        # Every slice of the stack is stretched by itself, whatever its pixels measure.
        depth, *plane = (s.stop - s.start for s in box)
        wanted = (spacing[0], *(own * n / new for own, n, new in zip(spacing[1:], plane, recipe.size, strict=True)))
        return Grid(turn, unturn, recipe.transpose, full, box, spacing, wanted, (depth, *recipe.size), apart=0)
    # The recipe of a 2-D network has no spacing for the axis across its slices.
    wanted = spacing if recipe.spacing is None else (spacing[: len(spacing) - len(recipe.spacing)] + recipe.spacing)
    cropped = [s.stop - s.start for s in box]
    shape = tuple(max(1, round(n * own / new)) for n, own, new in zip(cropped, spacing, wanted, strict=True))
    apart = coarse_axis(spacing, wanted, recipe.anisotropy_threshold)
    return Grid(turn, unturn, recipe.transpose, full, box, spacing, wanted, shape, apart)
