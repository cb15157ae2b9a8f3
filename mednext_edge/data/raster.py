"""Raster images (PNG, JPEG, BMP, TIFF) and their masks, as volumes of one slice.

Values are those of 8 bits, 0..255, whatever the depth of the file; alpha is dropped; EXIF's orientation is applied,
so that an image lies as its viewer shows it. A raster image says nothing of millimetres: a pixel counts as one.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from mednext_edge.data.volume import Volume
from mednext_edge.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

RASTER_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
LABEL_SUFFIX = ".png"
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
MAX_PIXELS = 2**27
"""More are refused before they are decoded: a few kilobytes can hold a picture of gigabytes."""

# 16-bit values by this are 8-bit ones: 65535 / 257 = 255.
_WIDE = 257
_WIDE_MODES = ("I;16", "I;16B", "I;16L")
_GREY = {"1": "L", "L": "L", "LA": "L", "La": "L", "PA": "RGB", "P": "RGB", "RGB": "RGB"}
THRESHOLD = 127.0

T = TypeVar("T")


def is_raster(path: Path) -> bool:
    """Whether a path is a file that its name says is a raster image, and that is not hidden."""
    return path.suffix.lower() in RASTER_SUFFIXES and not path.name.startswith(".") and path.is_file()


def raster_channels(path: Path) -> int:
    """1 for a grey image, 3 for one of colours, from its header alone.

    Raises:
        DataError: missing, or no image of these formats.
    """
    return _opened(path, lambda image: 1 if image.mode in ("1", "L", "LA", "La", "I", *_WIDE_MODES) else 3)


def raster_size(path: Path) -> tuple[int, int]:
    """Rows and columns as they are shown, from the header alone.

    Raises:
        DataError: missing, or no image of these formats.
    """
    return _opened(path, _shown_size)


def read_raster(path: str | Path) -> Volume:
    """An image as [C, 1, Y, X] float32 of 0..255; C is 1 for grey images and 3 (red, green, blue) for others.

    Raises:
        DataError: missing, damaged, animated or of several pages, too large, or of a pixel format that is not read.
    """
    pixels = _opened(Path(path), _pixels)
    channels = pixels[np.newaxis] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    return Volume(np.ascontiguousarray(channels[:, np.newaxis], dtype=np.float32), np.eye(4))


def read_raster_labels(path: str | Path) -> Volume:
    """A label map whose pixels are the labels, as [1, Y, X]; of an image with a palette, the palette's numbers.

    Raises:
        DataError: as `read_raster`; or an image of colours, whose pixels are no labels.
    """
    labels = _opened(Path(path), _indices)
    return Volume(labels[np.newaxis], np.eye(4))


def read_masks(paths: Sequence[Path], threshold: float, size: tuple[int, int] | None = None) -> Volume:
    """Several masks of one image as one, [1, Y, X] uint8: 1 where any of them is brighter than the threshold.

    Args:
        paths: at least one.
        threshold: of 0..255; JPEG and smoothed masks have grey borders.
        size: rows and columns to stretch each mask to, by nearest pixels; None leaves them as they are.

    Raises:
        DataError: as `read_raster`, or masks of different sizes.
    """
    from mednext_edge.data.resample import resample_labels

    whole: NDArray[np.uint8] | None = None
    for path in paths:
        pixels = _opened(path, _pixels)
        grey = pixels if pixels.ndim == 2 else pixels.max(axis=-1)
        mask = (grey > threshold).astype(np.uint8)
        if size is not None:
            mask = resample_labels(mask, size, 0)
        if whole is not None and whole.shape != mask.shape:
            raise DataError(f"{path} has {_size(mask.shape)} pixels, {paths[0]} has {_size(whole.shape)}; expected one")
        whole = mask if whole is None else whole | mask
    if whole is None:
        raise DataError("no mask was named")
    return Volume(np.ascontiguousarray(whole[np.newaxis]), np.eye(4))


def write_raster_labels(path: Path, labels: NDArray[np.generic], like: Volume) -> None:
    """Write a label map [1, Y, X] as a grey PNG whose pixels are the labels; to a temporary name first, then renamed.

    Raises:
        DataError: several slices, labels that are not 0..65535, or the file cannot be written.
    """
    from PIL import Image

    if labels.shape != like.spatial or labels.shape[0] != 1:
        raise DataError(f"found labels of shape {labels.shape} for {path.name}; expected one slice, {like.spatial}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() > 65535:
        raise DataError(f"{path.name}: labels of type {labels.dtype} cannot be written; expected integers 0..65535")
    pixels = labels[0].astype(np.uint8 if labels.max() < 256 else np.uint16)
    temporary = path.with_name(f".{uuid.uuid4().hex}{LABEL_SUFFIX}")
    try:
        Image.fromarray(pixels).save(temporary)
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}; nothing was left behind") from error
    finally:
        temporary.unlink(missing_ok=True)


def _opened(path: Path, look: Callable[[Image], T]) -> T:
    """What `look` makes of an opened image; everything that Pillow raises becomes a DataError."""
    from PIL import Image

    if not path.is_file():
        raise DataError(f"no such image: {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(f"{path} has {_size(image.size)} pixels; up to {MAX_PIXELS} are read")
                if getattr(image, "n_frames", 1) > 1:
                    raise DataError(
                        f"{path} is animated or has several pages; save the frames as images of their own, or a "
                        "volume as NIfTI"
                    )
                return look(image)
    except DataError:
        raise
    except Exception as error:  # Pillow's readers let many types through for broken files
        raise DataError(
            f"{path} cannot be read as an image ({' '.join(str(error).split())}); expected PNG, JPEG, BMP or TIFF that "
            "is whole"
        ) from error


def _shown_size(image: Image) -> tuple[int, int]:
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF's orientations that swap rows and columns
    return (image.width, image.height) if turned else (image.height, image.width)


def _pixels(image: Image) -> NDArray[np.float32]:
    """[Y, X] or [Y, X, 3], of 0..255."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode in _WIDE_MODES or (upright.mode == "I" and image.format == "PNG"):
        return np.asarray(upright).astype(np.float32) / np.float32(_WIDE)
    if upright.mode in ("I", "F"):
        raise DataError(
            f"{image.format} of {upright.mode} pixels has no known range; save it as 8 or 16 bits, or NIfTI"
        )
    return np.asarray(upright.convert(_GREY.get(upright.mode, "RGB")), dtype=np.float32)


def _indices(image: Image) -> NDArray[np.generic]:
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode not in ("1", "L", "P", "I", *_WIDE_MODES):
        raise DataError(f"found a label map of {upright.mode} pixels; expected one number a pixel (grey or a palette)")
    pixels = np.asarray(upright)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise DataError(f"found labels {pixels.min()}..{pixels.max()}; expected 0..65535")
    return pixels.astype(np.uint8 if pixels.max() < 256 else np.uint16)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
