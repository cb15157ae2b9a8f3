"""Data sets of raster images: the layouts that are read, descriptions, splits, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mednext_edge.data.dataset import Case, list_images, open_dataset
from mednext_edge.errors import DataError

from .pictures import mask, picture


def segmentation(
    folder: Path, count: int = 5, *, images: str = "images", masks: str = "masks", suffix: str = ""
) -> Path:
    for i in range(count):
        picture(folder / images / f"case {i}.png", seed=i)
        mask(folder / masks / f"case {i}{suffix}.png", slice(0, i))
    return folder


def describe(folder: Path, **fields: Any) -> Path:
    file = folder / "set.json"
    file.write_text(json.dumps({"name": "set", **fields}))
    return file


def names(cases: Sequence[Case]) -> list[str]:
    return [case.name for case in cases]


@pytest.mark.parametrize("suffix", ["", "_mask", "_segmentation"])
@pytest.mark.parametrize("folders", [("images", "masks"), ("Images", "Groundtruth")])
def test_images_beside_masks(tmp_path: Path, suffix: str, folders: tuple[str, str]) -> None:
    data = open_dataset(segmentation(tmp_path / "set", images=folders[0], masks=folders[1], suffix=suffix))
    assert (data.name, data.kind, data.colour) == ("set", "segmentation", "RGB")
    assert data.labels == {"background": 0, "foreground": 1}
    assert sorted(names((*data.training, *data.validation))) == [f"case {i}" for i in range(5)]
    assert len(data.validation) == 1
    for case in (*data.training, *data.validation):
        assert case.labels is not None
        assert case.labels().array.sum() == 6 * int(case.name.split()[1])
        assert case.output == "png"


def test_several_masks_of_an_image_are_joined(tmp_path: Path) -> None:
    segmentation(tmp_path, 3, suffix="_mask")
    mask(tmp_path / "masks" / "case 1_mask_1.png", slice(5, 8))
    data = open_dataset(tmp_path)
    (case,) = [case for case in (*data.training, *data.validation) if case.name == "case 1"]
    assert case.labels is not None
    assert case.labels().array[0, 0].tolist() == [1, 0, 0, 0, 0, 1, 1, 1]


def test_folders_of_a_split_are_kept_and_tests_left_alone(tmp_path: Path) -> None:
    for half, count in (("train", 3), ("validation", 2), ("test", 2)):
        segmentation(tmp_path / half, count)
    data = open_dataset(tmp_path)
    assert names(data.training) == ["train-case 0", "train-case 1", "train-case 2"]
    assert names(data.validation) == ["validation-case 0", "validation-case 1"]


def test_class_folders_are_split_by_the_numbers_of_each_class(tmp_path: Path) -> None:
    for name, count in (("benign", 10), ("malignant", 5)):
        for i in range(1, count + 1):
            picture(tmp_path / name / f"{name} ({i}).jpg", seed=i, mode="L")
    data = open_dataset(tmp_path)
    assert (data.kind, data.colour, data.channels) == ("classification", "grey", ("luminance",))
    assert data.labels == {"benign": 0, "malignant": 1}
    assert names(data.validation) == ["benign (9)", "benign (10)", "malignant (5)"]
    assert {case.category for case in data.training} == {0, 1}
    assert all(case.labels is None for case in data.training)


def test_two_folders_anywhere_with_folders_in_them(tmp_path: Path) -> None:
    for kind in ("benign", "malignant"):
        picture(tmp_path / "a" / kind / f"{kind} 1.png", seed=len(kind))
        mask(tmp_path / "b" / kind / f"{kind} 1_mask.png", slice(0, 2))
    data = open_dataset(f"{tmp_path / 'a'},{tmp_path / 'b'}")
    assert sorted(names((*data.training, *data.validation))) == ["benign 1", "malignant 1"]


def test_description_with_stretched_masks_split_and_copies(tmp_path: Path) -> None:
    for i in range(8):
        picture(tmp_path / "data" / "i" / f"{i}.png", seed=min(i, 6), size=(64, 64))
        mask(tmp_path / "data" / "m" / f"{i}_mask.png", slice(0, 4), size=(12, 16))
    fields: dict[str, Any] = {"root": "data", "folders": [{"images": "i", "masks": "m"}], "foreground": "lesion"}
    data = open_dataset(describe(tmp_path, **fields, stretch_masks=True, deduplicate=True))
    assert data.labels == {"background": 0, "lesion": 1}
    assert data.notes == ("1 of 8 images are near copies of others and were left out",)
    assert sorted(names((*data.training, *data.validation))) == [str(i) for i in range(7)]
    case = data.training[0]
    assert case.labels is not None
    assert case.labels().array.mean() == 0.25
    split = {"by": "range", "validation": 0.4}
    assert names(open_dataset(describe(tmp_path, **fields, split=split)).validation) == ["5", "6", "7"]
    with pytest.raises(DataError, match=r'12 x 16 pixels, its image 64 x 64; .*"stretch_masks": true'):
        strict = open_dataset(describe(tmp_path, **fields)).training[0]
        assert strict.labels is not None
        strict.labels()


def test_random_splits_follow_their_seed(tmp_path: Path) -> None:
    segmentation(tmp_path, 20)
    folders = [{"images": "images", "masks": "masks"}]
    splits = ({"validation": 0.3, "seed": seed} for seed in (1, 1, 2))
    held = [names(open_dataset(describe(tmp_path, folders=folders, split=split)).validation) for split in splits]
    assert held[0] == held[1] != held[2]
    assert len(held[0]) == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "expected `folders` with images and masks, or `classes`"),
        ({"classes": {"one": "a"}}, "expected two at least"),
        ({"folders": [{"images": "../a", "masks": "b"}]}, "not below"),
        ({"folders": [{"images": "nothing", "masks": "b"}]}, "no such folder"),
        ({"folders": [], "unknown": 1}, "Extra inputs"),
        ({"classes": {"a": "images", "b": "empty"}}, "holds no image; fill it, or leave the class `b` out"),
    ],
)
def test_descriptions_that_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    segmentation(tmp_path, 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        open_dataset(describe(tmp_path, **fields))


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        open_dataset(tmp_path)


def test_images_and_masks_that_do_not_match(tmp_path: Path) -> None:
    segmentation(tmp_path / "a", 3)
    (tmp_path / "a" / "masks" / "case 1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 images have no mask; the first is .*case 1\.png"):
        open_dataset(tmp_path / "a")
    segmentation(tmp_path / "b", 3)
    mask(tmp_path / "b" / "masks" / "other_mask.png", slice(0, 1))
    with pytest.raises(DataError, match="belongs to no image; expected one named `other`"):
        open_dataset(tmp_path / "b")
    picture(tmp_path / "c" / "images" / "1.png")
    picture(tmp_path / "c" / "images" / "1.jpg")
    mask(tmp_path / "c" / "masks" / "1.png", slice(0, 1))
    with pytest.raises(DataError, match="are both case `1`"):
        open_dataset(tmp_path / "c")


def test_images_to_predict(tmp_path: Path) -> None:
    for i in (10, 9):
        picture(tmp_path / f"frame {i}.png", seed=i)
    (tmp_path / "notes.txt").write_text("")
    assert names(list_images(tmp_path)) == ["frame 9", "frame 10"]
    (case,) = list_images(tmp_path / "frame 9.png")
    assert case.image().array.shape == (3, 1, 6, 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no image \(\.nii\.gz, \.nii, \.png"):
        list_images(tmp_path / "empty")
