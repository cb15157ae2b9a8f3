"""Segmentation objects out: read back by highdicom, checked by dicom3tools."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pytest
from numpy.typing import NDArray

from mednext_edge.data.dicom import DicomVolume, find_series, read_series
from mednext_edge.data.dicom_seg import SegIdentity, segmentation, write_seg
from mednext_edge.errors import DataError
from tests.data.dicom_series import dciodvfy, make_slices, on_grid, save_slices

LABELS = {"background": 0, "Liver": 1, "Hippocampus tail": 2}
IDENTITY = SegIdentity("tiny", "0.1", "ab" * 32, LABELS)


def blocks(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Two labels somewhere in a volume, no slice of the first and last."""
    labels = np.zeros(shape, np.uint8)
    labels[1:-1, 2:5, 1:4], labels[2:-1, 2:5, 4:7] = 1, 2
    return labels


@pytest.mark.parametrize("name", ["dicom_hippocampus", "dicom_mr_t1", "dicom_ct_chest"])
def test_real_series(shared_data: Path, tmp_path: Path, name: str) -> None:
    for series, files in find_series(shared_data / name).items():
        like = read_series(files)
        labels = blocks(like.spatial)
        write_seg(tmp_path / f"{series}.dcm", labels, like, IDENTITY)
        assert dciodvfy(tmp_path / f"{series}.dcm") == []
        seg = highdicom.seg.segread(tmp_path / f"{series}.dcm")
        np.testing.assert_array_equal(on_grid(seg, like.affine, like.spatial), labels)
    assert not [file for file in tmp_path.iterdir() if file.suffix != ".dcm" or file.name.startswith(".")]


@pytest.fixture
def series(tmp_path: Path) -> DicomVolume:
    c, s = np.cos(0.2), np.sin(0.2)
    voxels = np.random.default_rng(0).integers(0, 100, (6, 8, 9)).astype(np.int16)
    return read_series(save_slices(tmp_path / "in", make_slices(voxels, row=(c, 0, s), column=(0, 1, 0))))


def test_segments_say_what_they_are(series: DicomVolume) -> None:
    seg = segmentation(blocks(series.spatial), series, IDENTITY)
    assert [(s.SegmentNumber, s.SegmentLabel) for s in seg.SegmentSequence] == [(1, "Liver"), (2, "Hippocampus tail")]
    types = [s.SegmentedPropertyTypeCodeSequence[0] for s in seg.SegmentSequence]
    assert (types[0].CodeValue, types[0].CodingSchemeDesignator) == ("10200004", "SCT")
    assert types[1].CodingSchemeDesignator == "99MEDNEXTEDGE"
    assert (seg.SegmentationType, seg.Modality, seg.SeriesNumber) == ("BINARY", "SEG", 301)
    assert "not for diagnosis" in seg.ContentDescription
    assert seg.StudyInstanceUID == series.sources[0].StudyInstanceUID
    assert seg.FrameOfReferenceUID == series.sources[0].FrameOfReferenceUID
    np.testing.assert_array_equal(on_grid(seg, series.affine, series.spatial), blocks(series.spatial))


def test_uid_follows_from_slices_and_model(series: DicomVolume) -> None:
    labels = blocks(series.spatial)
    once, again = (segmentation(labels, series, IDENTITY) for _ in range(2))
    assert once.SOPInstanceUID == again.SOPInstanceUID
    assert once.SeriesInstanceUID == again.SeriesInstanceUID != once.SOPInstanceUID
    other = SegIdentity("tiny", "0.1", "cd" * 32, LABELS)
    assert segmentation(labels, series, other).SOPInstanceUID != once.SOPInstanceUID
    fewer = DicomVolume(series.array[:, :5], series.affine, sources=series.sources[:5])
    assert segmentation(labels[:5], fewer, IDENTITY).SOPInstanceUID != once.SOPInstanceUID


def test_nothing_found_is_an_object_too(series: DicomVolume, tmp_path: Path) -> None:
    write_seg(tmp_path / "empty.dcm", np.zeros(series.spatial, np.uint8), series, IDENTITY)
    seg = highdicom.seg.segread(tmp_path / "empty.dcm")
    assert not seg.pixel_array.any()
    assert len(seg.SegmentSequence) == 2
    assert dciodvfy(tmp_path / "empty.dcm") == []


def test_empty_and_invalid_patient_attributes(tmp_path: Path) -> None:
    slices = make_slices(np.ones((3, 8, 9), np.int16), PatientAge="42", PatientSize=None)
    for ds in slices:
        del ds.PatientBirthDate, ds.PatientSex, ds.StudyID, ds.ReferringPhysicianName
    like = read_series(save_slices(tmp_path / "in", slices))
    write_seg(tmp_path / "out.dcm", blocks((3, 8, 9)), like, IDENTITY)
    assert dciodvfy(tmp_path / "out.dcm") == []
    assert "PatientAge" in like.sources[0]  # the source is left alone


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"])
def test_sources_that_cannot_be_referred_to(tmp_path: Path, keyword: str) -> None:
    slices = make_slices(np.ones((3, 8, 9), np.int16))
    for ds in slices:
        setattr(ds, keyword, "")
    like = read_series(save_slices(tmp_path / "in", slices))
    with pytest.raises(DataError, match=keyword):
        segmentation(blocks((3, 8, 9)), like, IDENTITY)


def test_labels_of_another_shape(series: DicomVolume) -> None:
    with pytest.raises(DataError, match="do not fit"):
        segmentation(np.zeros((6, 8, 8), np.uint8), series, IDENTITY)


def test_unwritable_place(series: DicomVolume, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing was left behind"):
        write_seg(tmp_path / "absent" / "x.dcm", blocks(series.spatial), series, IDENTITY)
