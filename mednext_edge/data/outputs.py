"""The formats that label maps are written in, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mednext_edge.data.dicom import DicomVolume
from mednext_edge.data.dicom_seg import SegIdentity, write_seg
from mednext_edge.data.raster import LABEL_SUFFIX, write_raster_labels
from mednext_edge.data.volume import Volume, write_labels
from mednext_edge.errors import DataError
from mednext_edge.registry import Registry


@dataclass(frozen=True)
class OutputFormat:
    """One way to write the labels of a case.

    Attributes:
        suffix: of the file.
        write: (path, labels [Z, Y, X], the image they belong to, who made them).
    """

    suffix: str
    write: Callable[[Path, NDArray[np.generic], Volume, SegIdentity], None]


OUTPUTS: Registry[OutputFormat] = Registry("output format")


def _nifti(path: Path, labels: NDArray[np.generic], image: Volume, _: SegIdentity) -> None:
    write_labels(path, labels, image)


def _png(path: Path, labels: NDArray[np.generic], image: Volume, _: SegIdentity) -> None:
    write_raster_labels(path, labels, image)


def _dicom_seg(path: Path, labels: NDArray[np.generic], image: Volume, identity: SegIdentity) -> None:
    if not isinstance(image, DicomVolume):
        raise DataError(f"{path.name}: a segmentation object refers to a DICOM series; the image is none")
    write_seg(path, labels, image, identity)


OUTPUTS.add("nifti", OutputFormat(".nii.gz", _nifti))
OUTPUTS.add("png", OutputFormat(LABEL_SUFFIX, _png))
OUTPUTS.add("dicom-seg", OutputFormat(".dcm", _dicom_seg))
