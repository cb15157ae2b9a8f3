"""DICOM series in: against highdicom's own reading, compressed and plain, and everything that is refused."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from mednext_edge.data.dicom import find_series, read_series
from mednext_edge.data.dicom_pixels import codestream_size, readable_syntaxes
from mednext_edge.errors import DataError, GeometryError
from tests.data.dicom_series import PATIENT, make_slices, save_slices

LPS_TO_RAS = np.diag([-1, -1, 1, 1])


@pytest.fixture
def voxels() -> NDArray[np.int16]:
    return np.random.default_rng(0).integers(-1000, 1000, (5, 33, 40)).astype(np.int16)


@pytest.mark.parametrize("name", ["dicom_hippocampus", "dicom_mr_t1", "ct_organs/example_ct_dicom"])
def test_real_series(shared_data: Path, name: str) -> None:
    series = find_series(shared_data / name)
    assert len(series) == (2 if name == "dicom_hippocampus" else 1)
    for files in series.values():
        found = read_series(files)
        assert found.spatial[0] == len(files) == len(found.sources)
        if name.startswith("dicom"):
            theirs = highdicom.get_volume_from_series([pydicom.dcmread(f) for f in files])
            ours = found.array[0]
            # highdicom stacks against the normal; the same voxels lie in the same places all the same.
            for z in (0, len(files) - 1):
                place = (LPS_TO_RAS @ np.asarray(theirs.affine)) @ [z, 0, 0, 1]
                index = np.linalg.inv(found.affine) @ place
                k = round(float(index[2]))
                np.testing.assert_allclose(index[:3], [0, 0, k], atol=0.01)
                np.testing.assert_array_equal(ours[k], theirs.array[z])


def test_frames_of_reference_that_differ_are_noted(shared_data: Path) -> None:
    (files,) = find_series(shared_data / "dicom_ct_chest").values()
    found = read_series(files)
    assert found.spacing == (1.0, 0.78125, 0.78125)
    assert found.notes == ("24 frames of reference in one series; taken as the first slice's",)


def test_jpeg_2000_is_what_its_nifti_conversion_holds(shared_data: Path) -> None:
    (files,) = find_series(shared_data / "ct_organs" / "example_ct_dicom").values()
    assert pydicom.dcmread(files[0]).file_meta.TransferSyntaxUID == JPEG2000Lossless
    found = read_series(files)
    assert (found.array.min(), found.array.max()) == (-1024, 1839)


def test_rescaled_values_in_slice_order(tmp_path: Path, voxels: NDArray[np.int16]) -> None:
    files = save_slices(tmp_path, make_slices(voxels, RescaleSlope=2, RescaleIntercept=-5))
    found = read_series(files)
    np.testing.assert_array_equal(found.array[0], voxels * 2.0 - 5)
    assert found.spacing == (2.0, 1.0, 1.5)
    np.testing.assert_allclose(found.affine @ [0, 0, 0, 1], [10, 20, 30, 1])


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_compressed_slices(tmp_path: Path, voxels: NDArray[np.int16], syntax: str) -> None:
    assert syntax in readable_syntaxes()
    slices = make_slices(voxels, PixelRepresentation=0, PixelData=b"")
    for ds, pixels in zip(slices, voxels.astype(np.uint16) & 4095, strict=True):
        ds.PixelData = pixels.tobytes()
        ds.compress(syntax, generate_instance_uid=False)
    found = read_series(save_slices(tmp_path, slices))
    np.testing.assert_array_equal(found.array[0], voxels.astype(np.uint16) & 4095)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_a_codestream_of_another_size_is_not_decoded(
    tmp_path: Path, voxels: NDArray[np.int16], monkeypatch: pytest.MonkeyPatch, syntax: str
) -> None:
    slices = make_slices(np.abs(voxels), PixelRepresentation=0)
    for ds in slices:
        ds.compress(syntax, generate_instance_uid=False)
        ds.Rows, ds.Columns = 3, 3
    monkeypatch.setattr(pydicom.Dataset, "pixel_array", property(lambda _: pytest.fail("was decoded")))
    with pytest.raises(DataError, match="codestream"):
        read_series(save_slices(tmp_path, slices))


def test_codestream_size_of_damaged_streams() -> None:
    for data in (b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00", b"\xff\x4f\xff\x51\x00\x00", b"\x00" * 50):
        assert codestream_size(data) is None


def test_names_of_series_say_where_they_lie(tmp_path: Path, voxels: NDArray[np.int16]) -> None:
    save_slices(tmp_path / "a", make_slices(voxels[:2]))
    save_slices(tmp_path / "b" / "c", make_slices(voxels[:2]))
    for i, ds in enumerate(make_slices(voxels, SeriesNumber=4)):
        ds.save_as(tmp_path / "b" / "c" / f"other{i}.dcm", enforce_file_format=True)
    (tmp_path / "a" / "notes.txt").write_text("no DICOM")
    found = find_series(tmp_path)
    assert {name: len(files) for name, files in found.items()} == {"a": 2, "b_c_series3": 2, "b_c_series4": 5}
    assert list(find_series(tmp_path / "a")) == ["a"]


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("invalid", {"PixelSpacing": None}),
        ("invalid", {"ImageOrientationPatient": [1, 0, 0]}),
        ("invalid", {"ImagePositionPatient": None}),
        ("duplicate", {"ImagePositionPatient": [0, 0, 0]}),
    ],
)
def test_bad_geometry(tmp_path: Path, voxels: NDArray[np.int16], kind: str, attributes: dict[str, object]) -> None:
    with pytest.raises(GeometryError) as caught:
        read_series(save_slices(tmp_path, make_slices(voxels, **attributes)))
    assert caught.value.kind == kind


def test_two_series_are_not_one_volume(tmp_path: Path, voxels: NDArray[np.int16]) -> None:
    slices = make_slices(voxels)
    slices[2].SeriesInstanceUID = generate_uid()
    with pytest.raises(GeometryError) as caught:
        read_series(save_slices(tmp_path, slices))
    assert caught.value.kind == "series"


@pytest.mark.parametrize(
    ("words", "attributes"),
    [
        ("Enhanced MR", {"SOPClassUID": EnhancedMRImageStorage}),
        ("several frames", {"NumberOfFrames": 2}),
        ("3 samples", {"SamplesPerPixel": 3}),
        ("no pixels", {"PixelData": None}),
        ("cannot be decoded", {"PixelData": b"\0\0"}),
    ],
)
def test_what_is_not_read(tmp_path: Path, voxels: NDArray[np.int16], words: str, attributes: dict[str, object]) -> None:
    slices = make_slices(voxels, **attributes)
    if attributes.get("PixelData", b"") is None:
        for ds in slices:
            del ds.PixelData
    with pytest.raises(DataError, match=words) as caught:
        read_series(save_slices(tmp_path, slices))
    assert PATIENT not in str(caught.value)


def test_too_many_voxels(tmp_path: Path, voxels: NDArray[np.int16]) -> None:
    files = save_slices(tmp_path, make_slices(voxels))
    with pytest.raises(DataError, match="6600 voxels; at most 6599"):
        read_series(files, max_voxels=6599)


def test_deflated_files_are_not_inflated(tmp_path: Path, voxels: NDArray[np.int16]) -> None:
    slices = make_slices(voxels)
    for ds in slices:
        ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    with pytest.raises(DataError, match="deflated"):
        read_series(save_slices(tmp_path, slices))


def test_damaged_files_end_in_our_errors(tmp_path: Path, voxels: NDArray[np.int16]) -> None:
    files = save_slices(tmp_path / "good", make_slices(voxels))
    whole = files[0].read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for trial in range(150):
        data = bytearray(whole)
        if trial % 3 == 0:
            data = data[: int(rng.integers(132, len(data)))]
        else:
            for at in rng.integers(132, len(data), 8):
                data[at] = int(rng.integers(256))
        bad = tmp_path / "bad.dcm"
        bad.write_bytes(data)
        try:
            read_series([bad, *files[1:]])
        except DataError as error:
            refused += 1
            assert PATIENT not in str(error)
    assert refused > 60


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        find_series(tmp_path / "absent")
