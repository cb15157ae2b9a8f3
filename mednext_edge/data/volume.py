"""NIfTI images and label maps in and out, with their geometry kept to the voxel.

Arrays are in (z, y, x) order, that is the NIfTI axes reversed, as nnU-Net reads them; affines stay
in NIfTI's own order: (i, j, k) -> RAS millimetres (NIfTI-1 standard, qform/sform).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from mednext_edge.errors import DataError

SUFFIXES = (".nii.gz", ".nii")

# Sine-like measure of how far the three axes span space; below it the affine cannot be inverted usefully.
_FLAT = 1e-6
# Voxel corners of two channel files may differ by this many mm and still count as one grid.
_SAME_GRID_MM = 1e-3


@dataclass(frozen=True)
class Volume:
    """Voxels with their place in space.

    Attributes:
        array: image [C, Z, Y, X] float32, or label map [Z, Y, X] of an integer type.
        affine: (4, 4) float64, (i, j, k, 1) of the NIfTI axes (x, y, z) -> RAS mm.
        header: the NIfTI header it was read with; written back with the labels.
    """

    array: NDArray[np.generic]
    affine: NDArray[np.float64]
    header: nib.Nifti1Header | None = None

    @property
    def spatial(self) -> tuple[int, ...]:
        """Number of voxels, (z, y, x)."""
        return tuple(int(n) for n in self.array.shape[-3:])

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm, (z, y, x)."""
        sizes = np.sqrt((self.affine[:3, :3] ** 2).sum(0))
        return (float(sizes[2]), float(sizes[1]), float(sizes[0]))


def _open(path: Path) -> nib.Nifti1Image:
    if not path.is_file():
        raise DataError(f"no such image: {path}")
    try:
        image = nib.load(path)
    except Exception as error:  # nibabel lets many types through for broken files
        raise DataError(
            f"{path} cannot be read as NIfTI: {_one_line(error)}; get the file anew, or leave the case out"
        ) from error
    if not isinstance(image, nib.Nifti1Image):  # Nifti2Image derives from Nifti1Image
        raise DataError(f"{path} is a {type(image).__name__}; expected NIfTI (.nii, .nii.gz)")
    return image


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _shape(image: nib.Nifti1Image) -> tuple[int, ...]:
    """(X, Y, Z) or (X, Y, Z, C): without the empty time axis of vector images, and trailing axes of one."""
    shape = tuple(int(n) for n in image.shape)
    if len(shape) == 5 and shape[3] == 1:
        shape = (*shape[:3], shape[4])
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _read(path: Path) -> tuple[NDArray[np.generic], NDArray[np.float64], nib.Nifti1Header]:
    image = _open(path)
    affine = np.asarray(image.affine, dtype=np.float64)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= _FLAT * lengths.prod():
        raise DataError(f"{path}: the affine has no inverse or holds NaN; repair the header (sform/qform) first")
    try:
        # Integer files keep their type, so that labels and 64-bit values survive.
        array = np.asanyarray(image.dataobj)
    except Exception as error:  # zlib, EOF, OS and value errors alike: the file is cut short or damaged
        raise DataError(
            f"{path} cannot be read as NIfTI: {_one_line(error)}; get the file anew, or leave the case out"
        ) from error
    if array.dtype.names or not np.isrealobj(array):
        raise DataError(f"{path} holds {array.dtype} voxels; expected real numbers")
    if array.size == 0:
        raise DataError(f"{path} has shape {array.shape}: no voxel at all")
    return array.reshape(_shape(image)), affine, image.header


def image_channels(paths: Sequence[Path]) -> int:
    """Number of channels of an image, from the headers alone.

    Raises:
        DataError: missing or not NIfTI.
    """
    shapes = [_shape(_open(Path(path))) for path in paths]
    return sum(shape[3] if len(shape) == 4 else 1 for shape in shapes)


def read_image(paths: str | Path | Sequence[Path]) -> Volume:
    """An image as [C, Z, Y, X] float32: one file a channel, or one 4-D file whose last axis is the channel.

    Raises:
        DataError: missing, not NIfTI, not 3-D, NaN or Inf voxels, or channels on different grids.
    """
    files = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(p) for p in paths]
    channels: list[NDArray[np.float32]] = []
    first: tuple[NDArray[np.float64], nib.Nifti1Header] | None = None
    for path in files:
        array, affine, header = _read(path)
        if array.ndim not in (3, 4) or (array.ndim == 4 and len(files) > 1):
            raise DataError(
                f"{path} has shape {array.shape}; expected a 3-D image (a single slice as X x Y x 1), "
                "or one 4-D file with channels last"
            )
        if first is None:
            first = (affine, header)
        elif array.shape != tuple(reversed(channels[0].shape)) or not _same_grid(affine, first[0], array.shape):
            raise DataError(f"{path} is not on the grid of {files[0]}; resample the channels to one grid first")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes Inf and is reported below
            stack = array.astype(np.float32)
        bad = int(stack.size - np.isfinite(stack).sum())
        if bad:
            raise DataError(
                f"{path} holds {bad} NaN or infinite voxels; replace them (0 or the background value) first"
            )
        channels += [stack.T] if stack.ndim == 3 else [stack[..., c].T for c in range(stack.shape[3])]
    if first is None:
        raise DataError("no image file was named")
    return Volume(np.ascontiguousarray(np.stack(channels)), *first)


def _same_grid(one: NDArray[np.float64], other: NDArray[np.float64], shape: tuple[int, ...]) -> bool:
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])])
    return bool(np.abs(corners @ (one - other).T).max() < _SAME_GRID_MM)


def read_labels(path: str | Path) -> Volume:
    """A label map as [Z, Y, X] uint8 or uint16; float files are accepted when every value is a whole number.

    Raises:
        DataError: missing, not NIfTI, not 3-D, fractional or negative values, values over 65535.
    """
    path = Path(path)
    array, affine, header = _read(path)
    if array.ndim != 3:
        raise DataError(f"{path} has shape {array.shape}; expected a 3-D label map")
    if not np.issubdtype(array.dtype, np.integer):
        whole = np.rint(array)
        # 1e-4 forgives the rounding of a scale factor in the header (scl_slope).
        if not np.isfinite(whole).all() or np.abs(array - whole).max() > 1e-4:
            raise DataError(
                f"{path} holds values that are not whole numbers; expected a label map. Round the "
                "values; where it was resampled, do so with nearest neighbours"
            )
        array = whole
    if array.min() < 0 or array.max() > 65535:
        raise DataError(
            f"{path} holds labels {array.min():.0f}..{array.max():.0f}; expected 0..65535. Number them anew"
        )
    return Volume(np.ascontiguousarray(array.T.astype(_label_type(int(array.max())))), affine, header)


def label_values(labels: NDArray[np.generic]) -> set[int]:
    """The values that occur in a label map of an unsigned type."""
    return {int(v) for v in np.flatnonzero(np.bincount(labels.ravel()))}


def _label_type(largest: int) -> type[np.uint8] | type[np.uint16]:
    return np.uint8 if largest < 256 else np.uint16


def write_labels(path: str | Path, labels: NDArray[np.generic], like: Volume) -> None:
    """Write a label map [Z, Y, X] on the grid of `like`; to a temporary name first, then renamed.

    The file is uint8, or uint16 where a label is over 255; its geometry is that of `like`, to the bit
    where `like` was read from a file.

    Raises:
        DataError: the shape is not that of `like`, the labels are not 0..65535 or not integers, the suffix is
            not .nii or .nii.gz, or the file cannot be written.
    """
    path = Path(path)
    if labels.shape != like.spatial:
        raise DataError(f"labels {labels.shape} do not fit the image grid {like.spatial}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() > 65535:
        raise DataError(f"{path.name}: labels of type {labels.dtype} cannot be written; expected integers 0..65535")
    suffix = next((s for s in SUFFIXES if path.name.endswith(s)), None)
    if suffix is None:
        raise DataError(f"{path.name}: expected a name that ends in .nii or .nii.gz")
    image = _labels_image(labels.T.astype(_label_type(int(labels.max()))), like)
    temporary = path.with_name(f".{uuid.uuid4().hex}{suffix}")
    try:
        nib.save(image, temporary)
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}; nothing was left behind") from error
    finally:
        temporary.unlink(missing_ok=True)


def _labels_image(voxels: NDArray[np.generic], like: Volume) -> nib.Nifti1Image:
    """Voxels [X, Y, Z] under the header of `like`, which nibabel keeps as it is while the affine agrees."""
    header = None if like.header is None else like.header.copy()
    if header is not None:
        header.set_slope_inter(1, 0)
        header.set_data_dtype(voxels.dtype)
        header["cal_min"] = header["cal_max"] = 0
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    return kind(voxels, like.affine, header)
