"""Opening data sets: every layout, the split, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mednext_edge.data.dataset import list_images, open_dataset, validation_names
from mednext_edge.errors import DataError, UnknownNameError

V2 = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"}
MSD = {"name": "Set", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "left", "2": "right"}}


def nifti(path: Path, value: float = 0, shape: tuple[int, ...] = (3, 4, 5)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(shape, np.float32)
    array[0] = value
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def describe(folder: Path, content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def msd(folder: Path, names: Sequence[str], **fields: object) -> Path:
    for name in names:
        nifti(folder / "imagesTr" / f"{name}.nii.gz", 5)
        nifti(folder / "labelsTr" / f"{name}.nii.gz", 1)
    entries = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]
    return describe(folder, {**MSD, "training": entries, **fields})


def numbered(folder: Path, names: Sequence[str], channels: int = 2) -> Path:
    for name in names:
        for channel in range(channels):
            nifti(folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz", 5 + channel)
        nifti(folder / "labelsTr" / f"{name}.nii.gz", 1)
    return folder


def names(cases: Sequence[object]) -> list[str]:
    return [case.name for case in cases]  # type: ignore[attr-defined]


def test_decathlon_folder_without_validation_is_split(tmp_path: Path) -> None:
    data = open_dataset(msd(tmp_path / "set", [f"case_{i}" for i in range(7)]))
    assert (data.name, data.channels) == ("Set", ("MRI",))
    assert data.labels == {"background": 0, "left": 1, "right": 2}
    assert len(data.training) == 5
    assert len(data.validation) == 2
    case = data.training[0]
    assert case.image().array.shape == (1, 5, 4, 3)
    assert case.labels is not None
    assert case.labels().array.max() == 1


def test_listed_validation_is_kept(tmp_path: Path) -> None:
    folder = msd(tmp_path / "a", ["a", "b"])
    nifti(folder / "imagesVal" / "c.nii.gz")
    nifti(folder / "labelsVal" / "c.nii.gz")
    listing = json.loads((folder / "dataset.json").read_text())
    entry = {"image": "imagesVal/c.nii.gz", "label": "labelsVal/c.nii.gz"}
    for validation, expected in (
        ([entry], (["a", "b"], ["c"])),
        (["./imagesVal/c.nii.gz"], (["a", "b"], ["c"])),
        (["b"], (["a"], ["b"])),
        (["imagesTr/a.nii.gz"], (["b"], ["a"])),
        ([listing["training"][0]], (["b"], ["a"])),
    ):
        describe(folder, {**listing, "validation": validation})
        data = open_dataset(folder)
        assert (names(data.training), names(data.validation)) == expected


def test_nnunet_v2_folder(tmp_path: Path) -> None:
    data = open_dataset(describe(numbered(tmp_path / "Dataset001_X", ["a", "b"]), V2))
    assert data.channels == ("T1", "T2")
    assert data.labels == {"background": 0, "tumour": 1}
    assert sorted(names(data.training + data.validation)) == ["a", "b"]
    image = data.training[0].image().array
    assert [float(c.max()) for c in image] == [5, 6]


def test_nnunet_v2_list_of_files(tmp_path: Path) -> None:
    nifti(tmp_path / "x" / "one.nii.gz", 5)
    nifti(tmp_path / "x" / "two.nii.gz", 6)
    nifti(tmp_path / "y" / "truth.nii.gz", 1)
    files = {"case": {"images": ["x/one.nii.gz", "./x/two.nii.gz"], "label": "y/truth.nii.gz"}}
    data = open_dataset(describe(tmp_path, {**V2, "dataset": files}))
    assert names(data.training) == ["truth"]
    assert data.training[0].image().array.shape == (2, 5, 4, 3)


def test_nnunet_v1_folder_lists_cases_without_channel_numbers(tmp_path: Path) -> None:
    entries = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "ab"]
    content = {**MSD, "modality": {"0": "T1", "1": "T2"}, "training": entries}
    data = open_dataset(describe(numbered(tmp_path, "ab"), content))
    assert data.training[0].image().array.shape == (2, 5, 4, 3)


@pytest.mark.parametrize(("images", "labels"), [("imagesTr", "labelsTr"), ("images", "masks"), ("image", "label")])
def test_two_folders_without_description(tmp_path: Path, images: str, labels: str) -> None:
    for i in range(3):
        nifti(tmp_path / images / f"scan_202{i}.nii.gz", 9)
        nifti(tmp_path / labels / f"scan_202{i}.nii", 2 * i)
    (tmp_path / images / "._scan_2020.nii.gz").write_text("left by a file manager")
    for where in (tmp_path, f"{tmp_path / images},{tmp_path / labels}"):
        data = open_dataset(where)
        assert data.labels == {"background": 0, "label-2": 2, "label-4": 4}
        assert data.channels == ("channel-0",)
        assert sorted(names(data.training + data.validation)) == ["scan_2020", "scan_2021", "scan_2022"]


def test_two_folders_of_4d_images_have_as_many_channels(tmp_path: Path) -> None:
    nifti(tmp_path / "images" / "a.nii.gz", shape=(3, 4, 5, 2))
    nifti(tmp_path / "labels" / "a.nii.gz")
    assert open_dataset(tmp_path).channels == ("channel-0", "channel-1")
    nifti(tmp_path / "images" / "b.nii.gz")
    nifti(tmp_path / "labels" / "b.nii.gz")
    with pytest.raises(DataError, match="different channel counts"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 23, 208])
def test_split_is_that_of_scikit_learn(count: int) -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    keys = sorted(f"case_{i}" for i in range(count))
    folds = selection.KFold(min(5, count), shuffle=True, random_state=12345)
    _, held = next(folds.split(keys))
    assert validation_names(reversed(keys)) == tuple(keys[i] for i in held)


def test_a_single_case_trains() -> None:
    assert validation_names(["only"]) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "no `labels`"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "region"),
        ({"labels": {"background": 0, "ignore": 2}}, "ignore"),
        ({"labels": {"one": 1}}, "background"),
        ({"labels": {"background": 0, "one": "two"}}, "label `one: two`"),
        ({"labels": {"background": 0, "one": -1}}, "label `one: -1`"),
        ({"labels": {"0": "background", "1": "a", "2": "a"}}, "twice"),
        ({"modality": None}, "channel_names"),
        ({"modality": {"1": "MRI"}}, "channel_names"),
        ({"file_ending": ".png"}, r"\.png"),
        ({"training": []}, "no training case"),
        ({"training": {"a": 1}}, "expected a list"),
        ({"training": [{"image": "imagesTr/a.nii.gz"}]}, "label"),
        ({"training": ["imagesTr/a.nii.gz"]}, "label"),
        ({"training": [{"image": None, "label": "labelsTr/a.nii.gz"}]}, "file name"),
        ({"training": [{"image": "imagesTr/a.nii.gz", "label": "../../etc/passwd"}]}, "inside the folder"),
        ({"training": [{"image": "/etc/passwd", "label": "labelsTr/a.nii.gz"}]}, "inside the folder"),
        ({"training": [{"image": "imagesTr/../../a.nii.gz", "label": "labelsTr/a.nii.gz"}]}, "inside the folder"),
        ({"training": [{"image": "..\\a.nii.gz", "label": "labelsTr/a.nii.gz"}]}, "inside the folder"),
        ({"validation": ["nothing.nii.gz"]}, "no label file"),
        ({"validation": ["a", "b"]}, "every case"),
        ({"validation": ["a", "a"]}, "twice"),
        ({"validation": "a"}, "expected a list"),
        ({"modality": {"0": "a", "1": "b"}, "training": None, "dataset": {"x": 3}}, "label"),
    ],
)
def test_bad_descriptions_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    folder = msd(tmp_path / "set", ["a", "b"])
    content = json.loads((folder / "dataset.json").read_text())
    describe(folder, {k: v for k, v in {**content, **change}.items() if v is not None})
    with pytest.raises(DataError, match=message):
        open_dataset(folder)


def test_duplicate_cases_are_refused(tmp_path: Path) -> None:
    folder = msd(tmp_path / "set", ["a", "b"])
    content = json.loads((folder / "dataset.json").read_text())
    describe(folder, {**content, "training": content["training"] * 2})
    with pytest.raises(DataError, match="twice"):
        open_dataset(folder)


def test_missing_files_are_counted(tmp_path: Path) -> None:
    folder = msd(tmp_path / "set", ["a", "b", "c"])
    (folder / "imagesTr" / "a.nii.gz").unlink()
    (folder / "labelsTr" / "c.nii.gz").unlink()
    with pytest.raises(DataError, match=r"2 files .* missing; the first is .*a\.nii\.gz"):
        open_dataset(folder)


@pytest.mark.parametrize("text", ["{", "[]", "", "\x00", "[" * 100_000])
def test_a_broken_description_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json"):
        open_dataset(tmp_path)


def test_images_and_labels_must_pair(tmp_path: Path) -> None:
    folder = numbered(tmp_path, ["a", "b"], channels=1)
    (folder / "labelsTr" / "b.nii.gz").unlink()
    with pytest.raises(DataError, match=r"1 images .* no label .* `b`"):
        open_dataset(folder)
    nifti(folder / "labelsTr" / "b.nii.gz")
    nifti(folder / "labelsTr" / "c.nii.gz")
    with pytest.raises(DataError, match=r"1 labels .* no image .* `c`"):
        open_dataset(folder)


def test_wrong_number_of_channel_files_is_refused(tmp_path: Path) -> None:
    folder = describe(numbered(tmp_path, ["a", "b"], channels=3), V2)
    with pytest.raises(DataError, match="3 image files"):
        open_dataset(folder)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither dataset\.json nor"):
        open_dataset(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(DataError, match="no NIfTI file"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(tmp_path / "missing")
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(f"{tmp_path / 'images'},{tmp_path / 'missing'}")
    with pytest.raises(UnknownNameError, match="demo:brain-tissue"):
        open_dataset("demo:brain-tisue")
    with pytest.raises(DataError, match="not shipped"):
        open_dataset("demo:hippocampus")


def test_labels_that_the_data_set_does_not_name_are_refused(tmp_path: Path) -> None:
    folder = msd(tmp_path, ["a", "b"])
    nifti(folder / "labelsTr" / "a.nii.gz", 7)
    case = next(c for c in (*open_dataset(folder).training, *open_dataset(folder).validation) if c.name == "a")
    assert case.labels is not None
    with pytest.raises(DataError, match=r"\[7\]"):
        case.labels()


def test_images_to_predict(tmp_path: Path) -> None:
    for name in ("a_0000", "a_0001", "b", "c_2021", "c_2022"):
        nifti(tmp_path / f"{name}.nii.gz", 1)
    cases = list_images(tmp_path)
    assert names(cases) == ["a", "b", "c_2021", "c_2022"]
    assert all(case.labels is None for case in cases)
    assert cases[0].image().array.shape[0] == 2
    (one,) = list_images(tmp_path / "a_0001.nii.gz")
    assert (one.name, one.image().array.shape[0]) == ("a", 2)
    (plain,) = list_images(str(tmp_path / "c_2021.nii.gz"))
    assert (plain.name, plain.image().array.shape[0]) == ("c_2021", 1)


def test_images_that_cannot_be_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image"):
        list_images(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        list_images(tmp_path / "missing")
    nifti(tmp_path / "a_0000.nii.gz")
    nifti(tmp_path / "a_0002.nii.gz")
    with pytest.raises(DataError, match="no channel 0001"):
        list_images(tmp_path)
    (tmp_path / "a_0002.nii.gz").rename(tmp_path / "a.nii")
    with pytest.raises(DataError, match="both case `a`"):
        list_images(tmp_path)
    (tmp_path / "a.nii").rename(tmp_path / "a_0000.nii")
    with pytest.raises(DataError, match="both case `a_0000`"):
        list_images(tmp_path)


@pytest.mark.data
def test_real_hippocampus(hippocampus: Path) -> None:
    data = open_dataset(hippocampus)
    assert (len(data.training), len(data.validation)) == (208, 26)
    assert data.labels == {"background": 0, "Anterior": 1, "Posterior": 2}
    assert not set(names(data.training)) & set(names(data.validation))
    for case in data.validation[:3]:
        assert case.labels is not None
        assert case.image().spatial == case.labels().spatial
