"""NIfTI in and out, judged by nibabel itself."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

from mednext_edge.data.volume import Volume, image_channels, label_values, read_image, read_labels, write_labels
from mednext_edge.errors import DataError

OBLIQUE = from_matvec(euler2mat(0.3, -0.2, 0.1) @ np.diag([0.7, -0.8, 3.0]), [-31.5, 22.25, 9.0])
PERMUTED = np.array([[0, 0, 2.0, 5], [-1.5, 0, 0, 7], [0, 0.5, 0, -3], [0, 0, 0, 1]])
# Bytes of the second row of the sform (NIfTI-1 standard).
SROW_Y = slice(296, 312)
AFFINES = {
    "identity": np.eye(4),
    "flipped": np.diag([-1.0, -1.0, 1.0, 1.0]),
    "permuted": PERMUTED,
    "oblique": OBLIQUE,
    "micrometres": np.diag([1e-3, 1e-3, 2e-3, 1.0]),
}


def write(path: Path, array: np.ndarray, affine: np.ndarray | None = None, kind: type = nib.Nifti1Image) -> Path:
    nib.save(kind(array, np.eye(4) if affine is None else affine), path)
    return path


def reload(path: Path) -> Any:
    return nib.load(path)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 1), (0, 0)])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_labels_keep_the_geometry_of_the_image(
    tmp_path: Path, affine: np.ndarray, codes: tuple[int, int], kind: type
) -> None:
    image = kind(np.arange(24, dtype=np.int16).reshape(2, 3, 4), affine)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    image.header.set_slope_inter(0.5, 10)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "image.nii.gz")
    volume = read_image(tmp_path / "image.nii.gz")
    assert volume.array.shape == (1, 4, 3, 2)

    labels = np.random.default_rng(0).integers(0, 4, (4, 3, 2)).astype(np.int64)
    write_labels(tmp_path / "labels.nii.gz", labels, volume)

    before = reload(tmp_path / "image.nii.gz")
    after = reload(tmp_path / "labels.nii.gz")
    assert (type(before), type(after)) == (kind, kind)
    assert after.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(after.dataobj), labels.T)
    np.testing.assert_array_equal(after.affine, before.affine)
    for form in ("get_sform", "get_qform"):
        (was, was_code), (now, now_code) = (getattr(i.header, form)(coded=True) for i in (before, after))
        assert was_code == now_code
        if was_code:
            np.testing.assert_array_equal(was, now)
    assert after.header.get_zooms() == before.header.get_zooms()
    assert after.header.get_xyzt_units() == before.header.get_xyzt_units()
    assert (tmp_path / "labels.nii.gz").stat().st_mode & 0o777 == (tmp_path / "image.nii.gz").stat().st_mode & 0o777


def test_labels_follow_an_affine_that_is_no_longer_the_headers(tmp_path: Path) -> None:
    whole = read_image(write(tmp_path / "image.nii.gz", np.ones((4, 5, 6), np.float32), OBLIQUE))
    cropped = OBLIQUE.copy()
    cropped[:3, 3] += OBLIQUE[:3, 0] * 2
    part = Volume(whole.array[..., 2:], cropped, whole.header)
    write_labels(tmp_path / "labels.nii", np.zeros((6, 5, 2), np.uint8), part)
    after = reload(tmp_path / "labels.nii")
    np.testing.assert_allclose(after.affine, cropped, atol=1e-5)


def test_labels_without_a_header_get_the_affine(tmp_path: Path) -> None:
    volume = Volume(np.zeros((1, 2, 2, 2), np.float32), PERMUTED)
    write_labels(tmp_path / "labels.nii.gz", np.full((2, 2, 2), 300), volume)
    after = reload(tmp_path / "labels.nii.gz")
    np.testing.assert_allclose(after.affine, PERMUTED)
    assert after.get_data_dtype() == np.uint16
    assert label_values(read_labels(tmp_path / "labels.nii.gz").array) == {300}


def test_spacing_is_in_array_order(tmp_path: Path) -> None:
    volume = read_image(write(tmp_path / "i.nii", np.zeros((2, 3, 4), np.float32), OBLIQUE))
    np.testing.assert_allclose(volume.spacing, (3.0, 0.8, 0.7), rtol=1e-6)
    assert volume.spatial == (4, 3, 2)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    dtype=st.sampled_from([np.uint8, np.int16, np.int32, np.float32, np.float64]),
    seed=st.integers(0, 99),
)
def test_voxels_survive(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], dtype: type, seed: int
) -> None:
    path = tmp_path_factory.mktemp("volume") / "image.nii.gz"
    array: np.ndarray = np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    np.testing.assert_array_equal(read_image(path).array[0], array.T)
    np.testing.assert_array_equal(read_labels(path).array, array.T)


def test_channels_from_several_files_or_one_4d_file(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype(np.float32)
    files = [write(tmp_path / f"c_{i:04d}.nii.gz", array[..., i]) for i in range(2)]
    four = write(tmp_path / "four.nii.gz", array)
    five = write(tmp_path / "five.nii.gz", array[:, :, :, np.newaxis])
    single = write(tmp_path / "single.nii.gz", array[..., :1])
    np.testing.assert_array_equal(read_image(files).array, array.transpose(3, 2, 1, 0))
    np.testing.assert_array_equal(read_image(four).array, read_image(files).array)
    np.testing.assert_array_equal(read_image(five).array, read_image(files).array)
    np.testing.assert_array_equal(read_image(str(single)).array, read_image(files[0]).array)
    assert [image_channels(p) for p in (files, [four], [five], [single])] == [2, 2, 2, 1]


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """What `read_image` must refuse: name -> (file, part of the message)."""
    ones = np.ones((3, 3, 3), np.float32)
    broken = write(folder / "whole.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 20)))
    truncated = folder / "truncated.nii.gz"
    truncated.write_bytes(broken.read_bytes()[:9000])
    short = folder / "short.nii"
    short.write_bytes(gzip.decompress(broken.read_bytes())[:4000])
    text = folder / "text.nii.gz"
    text.write_text("not an image")
    empty = folder / "empty.nii"
    empty.touch()
    nan, inf = ones.copy(), ones.astype(np.float64)
    nan[0, 0, 0], inf[1, 1, 1] = np.nan, 1e300
    header = bytearray(write(folder / "right.nii", ones).read_bytes())
    for name, row in (("flat", (0, 0, 0, 0)), ("hole", (0, np.nan, 0, 0))):
        header[SROW_Y] = struct.pack("<4f", *row)
        (folder / f"{name}.nii").write_bytes(header)
    rgb = np.zeros((3, 3, 3), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nib.save(nib.MGHImage(ones, np.eye(4)), folder / "other.mgz")
    return {
        "missing": (folder / "missing.nii.gz", "no such image"),
        "folder": (folder, "no such image"),
        "truncated": (truncated, "cannot be read"),
        "short": (short, "cannot be read"),
        "text": (text, "cannot be read"),
        "empty": (empty, "cannot be read"),
        "nan": (write(folder / "nan.nii", nan), "1 NaN or infinite"),
        "inf": (write(folder / "inf.nii", inf), "1 NaN or infinite"),
        "2-D": (write(folder / "2d.nii", ones[0]), "expected a 3-D image"),
        "5-D": (write(folder / "5d.nii", np.ones((2, 2, 2, 2, 2))), "expected a 3-D image"),
        "singular": (folder / "flat.nii", "no inverse"),
        "nan affine": (folder / "hole.nii", "no inverse"),
        "rgb": (write(folder / "rgb.nii", rgb), "real numbers"),
        "complex": (write(folder / "complex.nii", ones.astype(np.complex64)), "real numbers"),
        "mgh": (folder / "other.mgz", "expected NIfTI"),
    }


@pytest.mark.parametrize(
    "case",
    [
        *("missing", "folder", "truncated", "short", "text", "empty", "nan", "inf"),
        *("2-D", "5-D", "singular", "nan affine", "rgb", "complex", "mgh"),
    ],
)
def test_bad_images_are_refused(tmp_path: Path, case: str) -> None:
    path, message = bad_files(tmp_path)[case]
    with pytest.raises(DataError, match=message) as error:
        read_image(path)
    assert str(path) in str(error.value)


def test_channels_on_other_grids_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "one.nii", np.ones((3, 4, 5)))
    for name, array, affine in (
        ("shape", np.ones((3, 4, 6)), None),
        ("turned", np.ones((5, 4, 3)), None),
        ("moved", np.ones((3, 4, 5)), np.diag([1.0, 1.0, 1.01, 1.0])),
    ):
        with pytest.raises(DataError, match="not on the grid"):
            read_image([one, write(tmp_path / f"{name}.nii", array, affine)])
    with pytest.raises(DataError, match="no image file"):
        read_image([])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, 2, 2), 0.5, np.float32), "not whole numbers"),
        (np.full((2, 2, 2), np.nan, np.float32), "not whole numbers"),
        (np.full((2, 2, 2), -1, np.int16), "-1..-1"),
        (np.full((2, 2, 2), 70000, np.int32), "70000..70000"),
        (np.ones((2, 2, 2, 2), np.uint8), "3-D label map"),
        (np.ones((2, 2, 2), np.complex64), "real numbers"),
    ],
)
def test_bad_labels_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_labels(write(tmp_path / "labels.nii", array))


def test_float_labels_and_scaled_labels_are_read(tmp_path: Path) -> None:
    array = np.array([[[0.0, 1.0, 2.0]]], np.float32)
    assert read_labels(write(tmp_path / "float.nii", array)).array.dtype == np.uint8
    scaled = nib.Nifti1Image(np.array([[[0, 10, 20]]], np.int16), np.eye(4))
    scaled.header.set_slope_inter(0.1, 0)
    nib.save(scaled, tmp_path / "scaled.nii")
    assert label_values(read_labels(tmp_path / "scaled.nii").array) == {0, 1, 2}


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    like = Volume(np.zeros((1, 2, 2, 2), np.float32), np.eye(4))
    labels = np.zeros((2, 2, 2), np.uint8)
    target = tmp_path / "labels.nii.gz"
    target.write_bytes(b"the file of before")
    for bad, path, message in (
        (labels[:1], target, "do not fit"),
        (labels, tmp_path / "labels.mha", "ends in"),
        (labels + 0.5, target, "expected integers"),
        (labels.astype(np.int16) - 1, target, "expected integers"),
        (labels, tmp_path / "no-folder" / "labels.nii", "cannot be written"),
    ):
        with pytest.raises(DataError, match=message):
            write_labels(path, bad, like)

    def full_disk(image: nib.Nifti1Image, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full_disk)
    with pytest.raises(DataError, match="No space left"):
        write_labels(target, labels, like)
    assert [p.name for p in tmp_path.iterdir()] == ["labels.nii.gz"]
    assert target.read_bytes() == b"the file of before"


@pytest.mark.data
def test_real_ct_keeps_its_geometry(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "ct_organs" / "example_ct.nii.gz"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {path.parent}")
    volume = read_image(path)
    write_labels(tmp_path / "labels.nii.gz", (volume.array[0] > 200).astype(np.uint8), volume)
    before, after = reload(path), reload(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(after.affine, before.affine)
    for field in ("qform_code", "sform_code", "pixdim", "srow_x", "quatern_b", "xyzt_units"):
        np.testing.assert_array_equal(after.header[field], before.header[field])
    np.testing.assert_array_equal(np.asarray(after.dataobj), np.asarray(before.dataobj, np.float32) > 200)
