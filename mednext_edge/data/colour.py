"""The channels of a photograph as a network wants them."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mednext_edge.errors import DataError

Colour = Literal["RGB", "BGR", "grey"]
# Luminance of red, green and blue (ITU-R BT.601, 2.5.1).
LUMINANCE = (0.299, 0.587, 0.114)


def as_colour(image: NDArray[np.float32], colour: Colour) -> NDArray[np.float32]:
    """[1 or 3, *spatial] -> [1, *spatial] for `grey`, else [3, *spatial] in that order.

    A grey image is repeated, one of red, green and blue becomes its luminance.

    Raises:
        DataError: neither one nor three channels.
    """
    if len(image) not in (1, 3):
        raise DataError(f"found an image of {len(image)} channels; expected a grey one or red, green and blue")
    if colour == "grey":
        return image if len(image) == 1 else np.einsum("c,c...->...", _LUMINANCE, image)[np.newaxis]
    three = np.repeat(image, 3, axis=0) if len(image) == 1 else image
    return three if colour == "RGB" else three[::-1]


_LUMINANCE = np.array(LUMINANCE, np.float32)
