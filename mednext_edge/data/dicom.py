"""A DICOM series of single-frame images as one volume.

(DICOM PS3.3: C.7.6.2 image plane, C.11.1 modality LUT.) Arrays are [1, slice, row, column]; the affine is RAS.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mednext_edge.data.dicom_pixels import read_pixels
from mednext_edge.data.slices import Slice, Vector, stack
from mednext_edge.data.volume import Volume
from mednext_edge.errors import DataError, GeometryError
from mednext_edge.optional import require

if TYPE_CHECKING:
    from pydicom import Dataset

IMAGE_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.4": "MR Image Storage",
    "1.2.840.10008.5.1.4.1.1.128": "Positron Emission Tomography Image Storage",
}
"""SOP classes that are read: one grey-scale slice an instance (PS3.4, B.5)."""

MAX_VOXELS = 2**30
"""Voxels that a series may have unless the caller says otherwise; 4 GiB as float32."""

# The part of the header that a series folder is sorted by.
_SORTING = ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber"]


@dataclass(frozen=True)
class DicomVolume(Volume):
    """A volume that remembers the slices it was made of.

    Attributes:
        sources: their headers without pixels, in the order of the array's second axis; held in memory only.
        notes: what is unusual about the series and was accepted.
    """

    sources: tuple[Dataset, ...] = ()
    notes: tuple[str, ...] = ()


def read_header(path: Path, name: str | None = None, tags: list[str] | None = None) -> Dataset:
    """The header of a DICOM file, without pixels.

    Args:
        path: of the file.
        name: what to call it in messages; its file name by default.
        tags: keywords of the only elements to read; None reads all.

    Raises:
        DataError: no DICOM file, damaged, or deflated.
    """
    pydicom = _pydicom()
    name = name or path.name
    try:
        # Deflated data may inflate to any size, so the meta information is looked at first.
        meta = pydicom.filereader.read_file_meta_info(path)
        if meta.TransferSyntaxUID == pydicom.uid.DeflatedExplicitVRLittleEndian:
            raise DataError(f"{name} is a deflated data set; convert it with `dcmconv +te` first")
        header: Dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
        for _ in header.iterall():  # elements are decoded when they are asked for, which fails in any way: here, then
            pass
    except DataError:
        raise
    except Exception as error:  # pydicom lets many types through for broken files
        raise DataError(f"{name} cannot be read as DICOM: {type(error).__name__}") from error
    return header


def _pydicom() -> Any:
    """pydicom, which quotes values in its warnings unless told not to judge what it reads."""
    pydicom = require("pydicom", "dicom")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


def find_series(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The image series below a folder: a name for each, and its files.

    The name is that of the sub-folder the series lies in, with the series number where one sub-folder holds several,
    and never anything out of the patient module. Files that are no DICOM images (DICOMDIR, text, other objects such
    as segmentations) are passed over.

    Raises:
        DataError: no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}")
    found: dict[tuple[Path, str], list[Path]] = {}
    numbers: dict[tuple[Path, str], str] = {}
    for path in _dicom_files(folder):
        header = read_header(path, tags=_SORTING)
        if sop_class(header) in IMAGE_CLASSES:
            key = (path.parent, str(header.get("SeriesInstanceUID", "")))
            found.setdefault(key, []).append(path)
            numbers.setdefault(key, str(header.get("SeriesNumber", "") or 0))
    named: dict[str, tuple[Path, ...]] = {}
    for key, files in found.items():
        parent, uid = key
        name = "_".join(parent.relative_to(folder).parts) or folder.resolve().name
        if sum(place == parent for place, _ in found) > 1:
            name = f"{name}_series{numbers[key]}"
        if name in named:  # one number twice
            name = f"{name}_{uid}"
        named[name] = tuple(files)
    return dict(sorted(named.items()))


def _dicom_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            with path.open("rb") as file:
                if file.read(132)[128:] == b"DICM" and path.name != "DICOMDIR":
                    yield path


def read_series(files: Sequence[Path], max_voxels: int = MAX_VOXELS) -> DicomVolume:
    """One series as a volume in the modality's units, [1, slice, row, column] float32.

    Slices are sorted by their place, not by name or number; the headers are checked before any pixel is decoded.

    Raises:
        DataError: unreadable, of a SOP class that is not read, larger than `max_voxels`.
        GeometryError: not one regular volume: several series, missing, doubled, tilted or differently oriented slices.
    """
    names = [f"file {path.name}" for path in files]
    headers = [read_header(path, name) for path, name in zip(files, names, strict=True)]
    for header, name in zip(headers, names, strict=True):
        _check_class(header, name)
    series = {str(h.get("SeriesInstanceUID", "")) for h in headers}
    if len(series) > 1:
        raise GeometryError(f"found slices of {len(series)} series; expected one", "series")
    places = [_slice(header, name) for header, name in zip(headers, names, strict=True)]
    voxels = sum(place.shape[0] * place.shape[1] for place in places)
    if voxels > max_voxels:
        raise DataError(f"found a series of {voxels} voxels; at most {max_voxels} are read")
    where = stack(places)
    pydicom = _pydicom()
    array = np.empty((1, len(files), *places[0].shape), np.float32)
    for z, index in enumerate(where.order):
        array[0, z] = read_pixels(pydicom.dcmread(files[index]), names[index])
    sources = tuple(headers[i] for i in where.order)
    return DicomVolume(array, where.affine, sources=sources, notes=_notes(sources))


def sop_class(header: Dataset) -> str:
    """UID of the SOP class: the data set's own, or the file's where anonymising has emptied it."""
    return str(header.get("SOPClassUID", "") or header.file_meta.get("MediaStorageSOPClassUID", ""))


def _check_class(header: Dataset, name: str) -> None:
    uid = sop_class(header)
    if uid not in IMAGE_CLASSES:
        known = ", ".join(IMAGE_CLASSES.values())
        raise DataError(
            f"{name} is {_class_name(uid)}; expected {known}. "
            "Split enhanced multi-frame images into single frames first"
        )
    samples = header.get("SamplesPerPixel", 1)
    if samples != 1 or header.get("NumberOfFrames", 1) not in (None, 1):
        raise DataError(f"{name} has {samples} samples a pixel or several frames; expected one grey-scale frame")


def _class_name(uid: str) -> str:
    """The standard's name of a SOP class; what is no such UID may be anything and is not quoted."""
    known = require("pydicom.uid", "dicom").UID_dictionary.get(uid)
    return f"of the class {known[0]}" if known else "of no known SOP class"


def _slice(header: Dataset, name: str) -> Slice:
    try:
        orientation = [float(v) for v in header.ImageOrientationPatient]
        position = [float(v) for v in header.ImagePositionPatient]
        spacing = [float(v) for v in header.PixelSpacing]
        thickness = float(header.get("SliceThickness") or header.get("SpacingBetweenSlices") or 1)
        shape = (int(header.Rows), int(header.Columns))
        if (len(orientation), len(position), len(spacing)) != (6, 3, 2):
            raise ValueError("wrong number of values")
    except (AttributeError, TypeError, ValueError) as error:
        raise GeometryError(
            f"{name} has no valid image plane (position, orientation, pixel spacing, rows, columns)", "invalid"
        ) from error
    row, column = _vector(orientation[:3]), _vector(orientation[3:])
    return Slice(name, _vector(position), row, column, (spacing[0], spacing[1]), shape, abs(thickness))


def _vector(values: Sequence[float]) -> Vector:
    return (values[0], values[1], values[2])


def _notes(sources: Sequence[Dataset]) -> tuple[str, ...]:
    frames = {str(s.get("FrameOfReferenceUID", "")) for s in sources}
    if len(frames) > 1:
        return (f"{len(frames)} frames of reference in one series; taken as the first slice's",)
    return ()
