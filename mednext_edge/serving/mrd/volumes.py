"""From image messages to volumes: which belong together, and where they lie in the patient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mednext_edge.data.slices import Slice, Vector, stack
from mednext_edge.data.volume import Volume
from mednext_edge.errors import DataError
from mednext_edge.serving.mrd.wire import Image

# Header fields that set the images of one volume apart from those of another.
_COUNTERS = ("image_series_index", "average", "contrast", "phase", "repetition", "set")
# image_type of phase and imaginary images, in which nothing is segmented.
_NOT_SHOWN = (2, 4)


@dataclass(frozen=True)
class MrdVolume(Volume):
    """A volume that remembers its messages.

    Attributes:
        places: for each slice of the array, the message it is of and its z in it.
        images: the messages, as they came.
    """

    places: tuple[tuple[int, int], ...] = ()
    images: tuple[Image, ...] = ()


def group(images: Iterable[Image]) -> list[tuple[Image, ...]]:
    """The images of each volume, in the order in which the volumes began; phase and imaginary images left out."""
    found: dict[tuple[int, ...], list[Image]] = {}
    for image in images:
        if image.header.image_type not in _NOT_SHOWN:
            found.setdefault(tuple(int(getattr(image.header, name)) for name in _COUNTERS), []).append(image)
    return [tuple(members) for members in found.values()]


def volume(images: Sequence[Image]) -> MrdVolume:
    """Images of one volume, 2-D slices or 3-D slabs, as [1, Z, Y, X] float32; complex images as their magnitude.

    Raises:
        DataError: several channels, or voxels that are no numbers.
        GeometryError: not one regular volume.
    """
    slices: list[Slice] = []
    places: list[tuple[int, int]] = []
    for number, image in enumerate(images):
        if len(image.data) != 1:
            raise DataError(f"found an image of {len(image.data)} channels; expected one, coils combined")
        for z in range(image.data.shape[1]):
            slices.append(_slice(image, number, z))
            places.append((number, z))
    where = stack(slices)
    ordered = tuple(places[i] for i in where.order)
    planes = [images[number].data[0, z] for number, z in ordered]
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite and is told below
        array = np.stack([np.abs(plane) if np.iscomplexobj(plane) else plane for plane in planes]).astype(np.float32)
    if not np.isfinite(array).all():
        raise DataError("found NaN or infinite voxels")
    return MrdVolume(array[np.newaxis], where.affine, places=ordered, images=tuple(images))


def _slice(image: Image, number: int, z: int) -> Slice:
    """One plane; an image's position is that of its middle, in LPS mm."""
    header = image.header
    _, depth, height, width = image.data.shape
    size = [float(fov) / n for fov, n in zip(header.field_of_view, (width, height, depth), strict=True)]
    read, phase, normal = (np.array(list(d), np.float64) for d in (header.read_dir, header.phase_dir, header.slice_dir))
    first = np.array(list(header.position), np.float64)
    first = first - read * size[0] * (width - 1) / 2 - phase * size[1] * (height - 1) / 2
    first = first + normal * size[2] * (z - (depth - 1) / 2)
    return Slice(
        f"image {number}" + (f", plane {z}" if depth > 1 else ""),
        _vector(first),
        _vector(read),
        _vector(phase),
        (size[1], size[0]),
        (height, width),
        size[2],
    )


def _vector(values: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]]) -> Vector:
    return (float(values[0]), float(values[1]), float(values[2]))
