"""Label maps as DICOM Segmentation objects (DICOM PS3.3, A.51; Segmentation Storage, BINARY), written by highdicom."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mednext_edge.data.dicom import DicomVolume
from mednext_edge.errors import DataError
from mednext_edge.optional import require
from mednext_edge.task import Task

if TYPE_CHECKING:
    from pydicom import Dataset

SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"
RESEARCH = "Research software, not for diagnosis or treatment"

# Private designator for labels that no standard context group holds (PS3.16, 8.2: `99` and up to 14 characters).
_PRIVATE_SCHEME = "99MEDNEXTEDGE"
# Where a label's name is looked up (PS3.16): property types, and the category that they are types of.
_TYPES = {"cid7192": "AnatomicalStructure", "cid7159": "MorphologicallyAbnormalStructure"}


_REFERRED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
# What a derived object repeats of patient and study, and may repeat as empty (type 2: PS3.3, C.7.1.1 and C.7.2.1).
_MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
_AGE = re.compile(r"\d{3}[DWMY]")  # PS3.5, 6.2: AS


@dataclass(frozen=True)
class SegIdentity:
    """Who made a segmentation.

    Attributes:
        name: of the model, as its bundle says.
        version: of this software.
        digest: SHA-256 of what segmented, hex; one digest and one set of slices give one SOP instance UID.
        labels: name to value, background included.
        regions: the values that belong to each name where they are several; a region is stored whole.
    """

    name: str
    version: str
    digest: str
    labels: Mapping[str, int]
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, task: Task, version: str, digest: str) -> SegIdentity:
        """That of a network's label maps."""
        return cls(task.name, version, digest, task.labels, task.masks if task.regions else {})


def instance_uid(sources: tuple[Dataset, ...], digest: str, what: str) -> str:
    """A UID that is the same whenever the same slices are segmented by the same model (PS3.5, B.2: 2.25 and a UUID)."""
    uids = sorted(str(source.SOPInstanceUID) for source in sources)
    number = uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256("\n".join([what, digest, *uids]).encode()).hexdigest())
    return f"2.25.{number.int}"


def segmentation(labels: NDArray[np.generic], like: DicomVolume, identity: SegIdentity) -> Dataset:
    """A label map as a DICOM SEG with a segment for each label but the background, or for each region.

    Args:
        labels: [slice, row, column] on the grid of `like`.
        like: the series that was segmented.
        identity: who segmented it.

    Raises:
        DataError: another shape than the series, or headers that no valid object can be derived from.
        TargetUnavailableError: highdicom is not installed.
    """
    if labels.shape != like.spatial or not like.sources:
        raise DataError(f"labels {labels.shape} do not fit the series {like.spatial}")
    seg = require("highdicom.seg", "dicom")
    missing = [key for key in _REFERRED for source in like.sources if not source.get(key)]
    if missing:
        raise DataError(f"the series lacks a {missing[0]}; a segmentation object must refer to it")
    names = sorted((value, name) for name, value in identity.labels.items() if value > 0)
    sources = [_reference(source, like.sources[0]) for source in like.sources]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # highdicom remarks on empty segments and on long names
            return _research_only(
                seg.Segmentation(
                    source_images=sources,
                    pixel_array=_segments(labels, names, identity),
                    segmentation_type=seg.SegmentationTypeValues.BINARY,
                    segment_descriptions=[_segment(number, name, identity) for number, name in names],
                    series_instance_uid=instance_uid(like.sources, identity.digest, "series"),
                    series_number=_series_number(like.sources[0]),
                    sop_instance_uid=instance_uid(like.sources, identity.digest, "instance"),
                    instance_number=1,
                    manufacturer="mednext-edge",
                    manufacturer_model_name=identity.name[:64],
                    software_versions=identity.version,
                    device_serial_number=identity.digest[:16],
                    content_description=RESEARCH,
                    content_label="SEGMENTATION",
                    series_description=f"{identity.name} segmentation"[:64],
                )
            )
    except Exception as error:  # highdicom fails in many ways on headers of strangers
        raise DataError(
            f"no segmentation object can be derived from this series: {type(error).__name__}; its headers lack "
            "what a derived object must repeat (study, patient, equipment, frame of reference)"
        ) from error


def write_seg(path: Path, labels: NDArray[np.generic], like: DicomVolume, identity: SegIdentity) -> None:
    """Write `segmentation` to a file: to a temporary name first, forced to the disk, then renamed.

    Raises:
        DataError: as `segmentation`, or the file cannot be written.
    """
    dataset = segmentation(labels, like, identity)
    temporary = path.with_name(f".{uuid.uuid4().hex}.dcm")
    try:
        with temporary.open("wb") as file:
            dataset.save_as(file, enforce_file_format=True)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}; nothing was left behind") from error
    finally:
        temporary.unlink(missing_ok=True)


def _segments(
    labels: NDArray[np.generic], names: Sequence[tuple[int, str]], identity: SegIdentity
) -> NDArray[np.unsignedinteger]:
    """The label map, or of regions, which overlap, one plane a segment: [slice, row, column, segments]."""
    if identity.regions:
        return np.stack([np.isin(labels, identity.regions[name]) for _, name in names], -1).astype(np.uint8)
    return np.asarray(labels, np.uint8 if len(names) < 256 else np.uint16)


def _segment(number: int, name: str, identity: SegIdentity) -> Any:
    seg = require("highdicom.seg", "dicom")
    highdicom = require("highdicom", "dicom")
    codes = require("pydicom.sr.codedict", "dicom").codes
    category, kind = _codes(name)
    return seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=identity.name[:64], version=identity.version, family=codes.DCM.ArtificialIntelligence
        ),
        tracking_uid=f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{identity.digest} {number}').int}",
        tracking_id=f"{identity.name} {name}"[:64],
    )


def _codes(name: str) -> tuple[Any, Any]:
    """Category and type of a label: the standard's of this name, or a private type that says no more than the name."""
    codes = require("pydicom.sr.codedict", "dicom").codes
    keyword = "".join(c for c in name.lower() if c.isalnum()).replace("grey", "gray")
    for group, category in _TYPES.items():
        for known, code in getattr(codes, group).concepts.items():
            if known.lower() == keyword:
                return getattr(codes.SCT, category), code
    highdicom = require("highdicom", "dicom")
    private = highdicom.sr.CodedConcept(value=name[:16], scheme_designator=_PRIVATE_SCHEME, meaning=name[:64])
    return codes.SCT.AnatomicalStructure, private


def _reference(source: Dataset, first: Dataset) -> Dataset:
    """A header as a derived object may repeat it.

    All slices get the first one's frame of reference, since the positions of a volume are in one frame; attributes
    that must be there but may be empty are there; optional ones whose value their type does not allow are left out.
    """
    pydicom = require("pydicom", "dicom")
    header: Dataset = pydicom.Dataset()
    header.update(source)
    header.file_meta = source.file_meta
    header.FrameOfReferenceUID = first.FrameOfReferenceUID
    for keyword in _MAY_BE_EMPTY:
        if keyword not in header:
            setattr(header, keyword, None)
    if not _AGE.fullmatch(str(header.get("PatientAge", "000Y"))):
        del header.PatientAge
    return header


def _research_only(dataset: Dataset) -> Dataset:
    dataset.ImageComments = RESEARCH
    return dataset


def _series_number(source: Dataset) -> int:
    """A number beside the source's, which viewers sort by."""
    number = int(source.get("SeriesNumber") or 0)
    return number * 100 + 1 if 0 <= number < 10**6 else 1
