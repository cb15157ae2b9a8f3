"""Images that show the same thing, which must not stand on both sides of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from mednext_edge.data.colour import as_colour
from mednext_edge.data.resample import resample
from mednext_edge.data.volume import Volume

SIDE = 64
# On BUSI 17 % of the images have a partner beyond this (published: 19 % duplicates), mostly the same lesion frozen
# again or measured with calipers; in a set of CT slices exact copies alone have, neighbours of a scan stay below 0.95.
ALIKE = 0.97
_BLOCK = 1024


def thumbnail(image: Volume) -> NDArray[np.float32]:
    """Brightness on a grid of 64 x 64, flattened, of mean 0 and length 1; zeros for an image of one value.

    Args:
        image: [C, 1, Y, X], grey or of colours.
    """
    small = resample(as_colour(image.array.astype(np.float32), "grey")[0, 0], (SIDE, SIDE), 1).ravel()
    centred: NDArray[np.float32] = small - small.mean()
    length = float(np.linalg.norm(centred))
    return centred / np.float32(length) if length > 0 else np.zeros_like(centred)


def later_copies(images: Iterable[Callable[[], Volume]]) -> list[int | None]:
    """For every image the position of an earlier one that shows the same; None for those that are new.

    Two show the same when their thumbnails correlate by 0.97. Copies of copies count as copies of the first.
    """
    thumbnails = np.array([thumbnail(image()) for image in images], dtype=np.float32).reshape(-1, SIDE * SIDE)
    first: list[int | None] = []
    for start in range(0, len(thumbnails), _BLOCK):
        alike = thumbnails[start : start + _BLOCK] @ thumbnails.T >= ALIKE
        for row, found in enumerate(alike, start):
            earlier = np.flatnonzero(found[:row])
            original = int(earlier[0]) if len(earlier) else None
            while original is not None and first[original] is not None:
                original = first[original]
            first.append(original)
    return first
