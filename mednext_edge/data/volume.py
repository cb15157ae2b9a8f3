"""NIfTI images and label maps in and out, with their geometry kept to the voxel.

Arrays are in (z, y, x) order, that is the NIfTI axes reversed, as nnU-Net reads them; affines stay
in NIfTI's own order: (i, j, k) -> RAS millimetres (NIfTI-1 standard, qform/sform).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from mednext_edge.errors import DataError

SUFFIXES = (".nii.gz", ".nii")


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
        return tuple(int(n) for n in self.array.shape[-3:])

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm, (z, y, x)."""
        sizes = np.sqrt((self.affine[:3, :3] ** 2).sum(0))
        return (float(sizes[2]), float(sizes[1]), float(sizes[0]))


def _read(path: Path) -> tuple[NDArray[np.generic], NDArray[np.float64], nib.Nifti1Header]:
    if not path.is_file():
        raise DataError(f"no such image: {path}")
    try:
        image = nib.load(path)
        # Integer files keep their type, so that labels and 64-bit values survive.
        array = np.asanyarray(image.dataobj)
    except Exception as error:  # nibabel lets many types through for broken files
        raise DataError(f"{path} cannot be read as NIfTI: {error}") from error
    if not isinstance(image, nib.Nifti1Image):  # Nifti2Image derives from Nifti1Image
        raise DataError(f"{path} is a {type(image).__name__}; expected NIfTI (.nii, .nii.gz)")
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise DataError(f"{path}: the affine has no inverse or holds NaN; repair the header (sform/qform) first")
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return array, affine, image.header


def read_image(paths: Path | Sequence[Path]) -> Volume:
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
            raise DataError(f"{path} has shape {array.shape}; expected a 3-D image, or one 4-D file with channels last")
        if not np.isrealobj(array) or array.dtype.names:
            raise DataError(f"{path} holds {array.dtype} voxels; expected real numbers")
        if first is None:
            first = (affine, header)
        elif not np.allclose(affine, first[0], atol=1e-3) or array.shape != tuple(reversed(channels[0].shape)):
            raise DataError(f"{path} is not on the grid of {files[0]}; resample the channels to one grid first")
        stack = array.astype(np.float32)
        bad = int(stack.size - np.isfinite(stack).sum())
        if bad:
            raise DataError(f"{path} holds {bad} NaN or infinite voxels; replace them (0 or the background value) first")
        channels += [stack.T] if stack.ndim == 3 else [stack[..., c].T for c in range(stack.shape[3])]
    if first is None:
        raise DataError("no image file was named")
    return Volume(np.ascontiguousarray(np.stack(channels)), *first)


def read_labels(path: Path) -> Volume:
    """A label map as [Z, Y, X]; float files are accepted when every value is a whole number.

    Raises:
        DataError: missing, not NIfTI, not 3-D, fractional or negative values, values over 65535.
    """
    array, affine, header = _read(Path(path))
    if array.ndim != 3:
        raise DataError(f"{path} has shape {array.shape}; expected a 3-D label map")
    whole = np.rint(array.astype(np.float64))
    if not np.isfinite(whole).all() or np.abs(array - whole).max(initial=0) > 1e-4:
        raise DataError(f"{path} holds values that are not whole numbers; expected a label map")
    if whole.size and (whole.min() < 0 or whole.max() > 65535):
        raise DataError(f"{path} holds labels {whole.min():.0f}..{whole.max():.0f}; expected 0..65535")
    kind = np.uint8 if whole.max(initial=0) < 256 else np.uint16
    return Volume(np.ascontiguousarray(whole.T.astype(kind)), affine, header)


def write_labels(path: Path, labels: NDArray[np.generic], like: Volume) -> None:
    """Write a label map [Z, Y, X] on the grid of `like`; to a temporary name first, then renamed.

    Raises:
        DataError: the shape is not that of `like`, or the suffix is not .nii or .nii.gz.
    """
    path = Path(path)
    if labels.shape != like.spatial:
        raise DataError(f"labels {labels.shape} do not fit the image grid {like.spatial}")
    suffix = next((s for s in SUFFIXES if path.name.endswith(s)), None)
    if suffix is None:
        raise DataError(f"{path.name}: expected a name that ends in .nii or .nii.gz")
    header = like.header.copy() if like.header is not None else nib.Nifti1Header()
    header.set_slope_inter(1, 0)
    header.set_data_dtype(labels.dtype)
    header["cal_min"] = header["cal_max"] = 0
    image = nib.Nifti1Image(labels.T, like.affine, header)
    if like.header is not None:
        # nibabel resets the codes when an affine is given; keep what the file said.
        image.set_sform(like.affine, int(like.header["sform_code"]) or 1)
        if int(like.header["qform_code"]) and np.allclose(like.header.get_qform(), like.affine, atol=1e-3):
            image.set_qform(like.affine, int(like.header["qform_code"]))
    handle, temporary = tempfile.mkstemp(suffix=suffix, dir=path.parent)
    os.close(handle)
    try:
        nib.save(image, temporary)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
