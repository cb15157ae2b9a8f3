"""`mednext-edge predict`: label maps on the images' grids, parts, resuming, bad images."""

from __future__ import annotations

import shutil
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pytest

from mednext_edge.data.dataset import Case
from mednext_edge.serving import cohort_ray
from mednext_edge.serving.cohort import CaseRunner, Settings
from tests.data.dicom_series import make_slices, on_grid, save_slices

from .conftest import Cli

NAMES = [f"case{i}.nii.gz" for i in range(6)]


@pytest.fixture
def images(dataset: Path, tmp_path: Path) -> Path:
    """Two images of their own."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in NAMES[:2]:
        shutil.copy(dataset / "imagesTr" / name, folder / name)
    return folder


def test_folder(edge: Cli, bundle: Path, images: Path, tmp_path: Path) -> None:
    done = edge("predict", bundle, "-i", images, "-o", tmp_path / "out" / "labels", "--disable_tta", "--json")
    assert done.code == 0
    assert [case["case"] for case in done.json["cases"]] == ["case0", "case1"]
    for name in NAMES[:2]:
        image, labels = nib.load(images / name), nib.load(tmp_path / "out" / "labels" / name)
        assert labels.shape == image.shape
        np.testing.assert_allclose(labels.affine, image.affine)
        assert set(np.unique(labels.dataobj)) <= {0, 1, 2}


def test_mirroring_changes_the_scores_and_a_bundle_agrees_with_its_checkpoint(
    edge: Cli, bundle: Path, checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    maps = {}
    for name, source, flags in (
        ("plain", bundle, ["--disable_tta"]),
        ("mirrored", bundle, []),
        ("torch", checkpoint, ["--disable_tta"]),
        ("steps", bundle, ["--disable_tta", "-step_size", "0.1"]),
    ):
        assert edge("predict", source, "-i", images / NAMES[0], "-o", tmp_path / name, *flags).code == 0
        maps[name] = np.asarray(nib.load(tmp_path / name / NAMES[0]).dataobj)
    assert (maps["plain"] == maps["torch"]).mean() > 0.999
    assert (maps["plain"] != maps["mirrored"]).any()
    assert (maps["plain"] != maps["steps"]).any()


def test_parts_share_the_cases(edge: Cli, bundle: Path, dataset: Path, tmp_path: Path) -> None:
    done = {}
    for part in range(4):
        args = ["-i", dataset / "imagesTr", "-o", tmp_path / "out", "-num_parts", 4, "-part_id", part]
        document = edge("predict", bundle, *args, "--disable_tta", "--json").json
        done[part] = [case["case"] for case in document["cases"]]
    assert sorted(name for names in done.values() for name in names) == [f"case{i}" for i in range(6)]
    assert sorted(map(len, done.values())) == [1, 1, 2, 2]


def test_part_that_does_not_exist(edge: Cli, bundle: Path, images: Path, tmp_path: Path) -> None:
    done = edge("predict", bundle, "-i", images, "-o", tmp_path / "out", "-num_parts", 2, "-part_id", 2)
    assert done.code == 2
    assert "expected 0 to 1" in done.err
    assert not (tmp_path / "out").exists()


def test_continue_prediction_keeps_what_is_there(edge: Cli, bundle: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / NAMES[0]).write_bytes(b"kept")
    args = ["predict", bundle, "-i", images, "-o", out, "--disable_tta", "--json"]
    document = edge(*args, "--continue_prediction").json
    assert ([case["case"] for case in document["cases"]], document["skipped"]) == (["case1"], 1)
    assert (out / NAMES[0]).read_bytes() == b"kept"
    assert edge(*args).json["skipped"] == 0
    assert (out / NAMES[0]).read_bytes() != b"kept"


def test_a_bad_image_costs_only_itself(edge: Cli, bundle: Path, images: Path, tmp_path: Path) -> None:
    broken = nib.load(images / NAMES[0])
    voxels = np.array(broken.dataobj)
    voxels[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(voxels, broken.affine), images / NAMES[0])
    done = edge("predict", bundle, "-i", images, "-o", tmp_path / "out", "--disable_tta", "--json")
    assert done.code == 1
    assert "NaN" in done.err
    assert "1 of 2 images could not be predicted" in done.err
    assert [case["case"] for case in done.json["cases"]] == ["case1"]
    assert [case["case"] for case in done.json["failed"]] == ["case0"]
    assert [file.name for file in (tmp_path / "out").iterdir()] == [NAMES[1]]


@pytest.mark.parametrize("shape", [(5, 7, 1), (16, 16, 16), (17, 33, 15)])
def test_odd_sizes(edge: Cli, bundle: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = tmp_path / "odd.nii"
    rng = np.random.default_rng(1)
    nib.save(nib.Nifti1Image(rng.normal(size=shape).astype(np.float32), np.diag([1, -1, 2, 1])), image)
    assert edge("predict", bundle, "-i", image, "-o", tmp_path / "out", "--disable_tta").code == 0
    assert nib.load(tmp_path / "out" / "odd.nii.gz").shape == shape


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["-step_size", "0"], 2, "step"),
        (["-step_size", "2"], 2, "step"),
        (["--device", "NPU9"], 5, "NPU9"),
        (["--threads", "0"], 2, "--threads"),
    ],
)
def test_impossible_flags(
    edge: Cli, bundle: Path, images: Path, tmp_path: Path, flags: list[str], code: int, words: str
) -> None:
    done = edge("predict", bundle, "-i", images, "-o", tmp_path / "out", *flags)
    assert (done.code, done.out) == (code, "")
    assert words in done.err


@pytest.mark.parametrize(("device", "code"), [("gpu", 2), ("cuda:99", 5)])
def test_impossible_device_of_a_checkpoint(
    edge: Cli, checkpoint: Path, images: Path, tmp_path: Path, device: str, code: int
) -> None:
    done = edge("predict", checkpoint, "-i", images, "-o", tmp_path / "out", "--device", device)
    assert (done.code, done.out) == (code, "")
    assert device in done.err


def test_missing_or_empty_input(edge: Cli, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "absent"):
        done = edge("predict", bundle, "-i", tmp_path / folder, "-o", tmp_path / "out")
        assert (done.code, done.out) == (1, "")
        assert folder in done.err
    assert not (tmp_path / "out").exists()


def test_output_that_is_a_file(edge: Cli, bundle: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"mine")
    assert edge("predict", bundle, "-i", images, "-o", tmp_path / "out").code == 2
    assert (tmp_path / "out").read_bytes() == b"mine"


def test_dicom_series_and_segmentation_objects(edge: Cli, bundle: Path, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 500, (12, 17, 19)).astype(np.int16)
    row, column = (0.96, 0.28, 0), (-0.28, 0.96, 0)
    for name in ("one", "two"):
        save_slices(tmp_path / "study" / name, make_slices(voxels, row=row, column=column))
    args = ["predict", bundle, "-i", tmp_path / "study", "--disable_tta"]
    assert edge(*args, "-o", tmp_path / "nifti").code == 0
    done = edge(*args, "-o", tmp_path / "seg", "--format", "dicom-seg", "--json")
    assert [Path(case["labels"]).name for case in done.json["cases"]] == ["one.dcm", "two.dcm"]
    nifti = nib.load(tmp_path / "nifti" / "one.nii.gz")
    seg = highdicom.seg.segread(tmp_path / "seg" / "one.dcm")
    np.testing.assert_array_equal(on_grid(seg, nifti.affine, nifti.shape[::-1]), np.asarray(nifti.dataobj).T)
    again = edge(*args, "-o", tmp_path / "seg", "--format", "dicom-seg", "--continue_prediction", "--json")
    assert again.json["skipped"] == 2


def test_nifti_has_no_segmentation_object(edge: Cli, bundle: Path, images: Path, tmp_path: Path) -> None:
    args = ["predict", bundle, "-i", images, "-o", tmp_path / "out", "--disable_tta", "--format"]
    done = edge(*args, "dicom-seg")
    assert done.code == 1
    assert "refers to a DICOM series" in done.err
    assert edge(*args, "dicomseg").code == 2


def test_a_gap_in_a_series_is_named(edge: Cli, bundle: Path, tmp_path: Path) -> None:
    slices = make_slices(np.ones((8, 17, 19), np.int16))
    save_slices(tmp_path / "in", slices[:3] + slices[4:])
    done = edge("predict", bundle, "-i", tmp_path / "in", "-o", tmp_path / "out", "--disable_tta")
    assert done.code == 1
    assert "1 missing slice" in done.err


def test_ray_and_parts_exclude_each_other(edge: Cli, bundle: Path, images: Path, tmp_path: Path) -> None:
    done = edge("predict", bundle, "-i", images, "-o", tmp_path / "out", "--ray", "local", "-num_parts", 2)
    assert done.code == 2
    assert "--ray" in done.err


def test_a_run_on_ray_writes_a_ledger_and_goes_on(
    edge: Cli, bundle: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(address: str, open_session: object, settings: Settings, cases: list[Case], ledger: Path) -> object:
        assert (address, ledger) == ("head:6379", tmp_path / "out" / "ledger.jsonl")
        assert callable(open_session)
        with open_session(1) as session:
            for case in cases:
                yield CaseRunner(session, settings).run(case)

    monkeypatch.setattr(cohort_ray, "run_on_ray", run)
    args = ["predict", bundle, "-i", images, "-o", tmp_path / "out", "--disable_tta", "--ray", "head:6379", "--json"]
    assert [case["case"] for case in edge(*args).json["cases"]] == ["case0", "case1"]
    assert edge(*args, "--continue_prediction").json["skipped"] == 2
