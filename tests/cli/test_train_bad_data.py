"""`mednext-edge train` on what users bring by mistake: each refusal names the case, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import Cli
from .small_sets import AFFINE, HELD, SHORT, TRAINED, nothing, voxel, words_of, write

MOVED = AFFINE + np.eye(4, k=3) * 7
MISTAKES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "label out of range": (
        {"labels": voxel(7)},
        ("labelsTr/{case}.nii.gz holds the labels [7]", "{'background': 0, 'one': 1, 'two': 2}", "name the labels in"),
    ),
    "negative label": (
        {"labels": lambda a: voxel(-1)(a.astype(np.int16))},
        ("labelsTr/{case}.nii.gz holds labels -1..2; expected 0..65535",),
    ),
    "fraction of a label": (
        {"labels": lambda a: voxel(1.5)(a.astype(np.float32))},
        ("labelsTr/{case}.nii.gz holds values that are not whole numbers", "expected a label map"),
    ),
    "labels of another shape": (
        {"labels": lambda a: a[:-1]},
        ("case {case} (", "labelsTr/{case}.nii.gz): found labels of shape (22, 20, 17) for an image of", "Resample"),
    ),
    "labels elsewhere": (
        {"labels_affine": MOVED},
        ("case {case} (", "labelsTr/{case}.nii.gz): found labels whose affine puts a corner 7 mm away", "Resample"),
    ),
    "no label file": ({"labels": nothing}, ("{case}",)),
    "no image file": ({"image": nothing}, ("{case}",)),
    "NaN": ({"image": voxel(np.nan)}, ("/imagesTr/{case}", "holds 1 NaN or infinite voxels; replace them")),
    "infinite": ({"image": voxel(np.inf)}, ("/imagesTr/{case}", "holds 1 NaN or infinite voxels; replace them")),
    "4-D image": (
        {"image": lambda a: np.stack([a, a], -1)},
        ("/imagesTr/{case}", "holds an image of 2 channels; expected 1", "(MRI). Correct its channel_names"),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize(("layout", "case"), [("decathlon", HELD), ("nnunet", TRAINED)])
def test_a_case_that_cannot_be_used_is_named(edge: Cli, tmp_path: Path, mistake: str, layout: str, case: str) -> None:
    changes, words = MISTAKES[mistake]
    data = write(tmp_path / "data", layout=layout, only=case, **changes)
    done = edge("train", data, *SHORT, "-o", tmp_path / "run")
    assert (done.code, done.out) == (1, ""), done.err
    for part in words:
        assert part.replace("{case}", case) in words_of(done)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [[], SHORT[6:10]], ids=["patch planned", "patch given"])
@pytest.mark.parametrize("layout", ["decathlon", "nnunet"])
def test_a_description_that_lies_about_channels(edge: Cli, tmp_path: Path, layout: str, size: list[object]) -> None:
    data = write(tmp_path / "data", layout=layout, channels=("T1", "T2"))
    done = edge("train", data, "--epochs", 1, "--steps", 1, *size, "-o", tmp_path / "run")
    assert (done.code, done.out) == (1, "")
    assert "/imagesTr/case0" in words_of(done)
    assert "holds an image of 1 channels; expected 2, those that the data set names (T1, T2)" in words_of(done)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[: len(content) // 2], lambda content: b"\x1f\x8b but no gzip", lambda content: b""],
    ids=["cut", "other", "empty"],
)
@pytest.mark.parametrize("planned", [False, True], ids=["before", "between"])
def test_a_damaged_image(
    edge: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[bytes], bytes],
    planned: bool,
) -> None:
    """Damaged before the run, or after it was planned from the images."""
    image = write(tmp_path / "data") / "imagesTr" / f"{TRAINED}.nii.gz"

    def break_it(*_: object) -> None:
        image.write_bytes(damage(image.read_bytes()))

    if planned:
        monkeypatch.setattr("mednext_edge.cli.plan.show_plan", break_it)
    else:
        break_it()
    done = edge("train", tmp_path / "data", *SHORT, "-o", tmp_path / "run")
    assert (done.code, done.out) == (1, "")
    assert f"{image} cannot be read as NIfTI" in words_of(done)
    assert "get the file anew, or leave the case out" in words_of(done)
    assert not (tmp_path / "run").exists()


def test_foreground_nowhere(edge: Cli, tmp_path: Path) -> None:
    done = edge("train", write(tmp_path / "data", labels=np.zeros_like), *SHORT, "-o", tmp_path / "run")
    assert (done.code, done.out) == (1, "")
    assert "no training case has a voxel of foreground; expected one at least. Look at the label maps" in words_of(done)
    assert not (tmp_path / "run").exists()


def test_what_is_unusual_is_said_and_trained(edge: Cli, tmp_path: Path) -> None:
    """A class that never occurs, one case alone; whole numbers stored as floats are no mistake."""
    absent = write(tmp_path / "absent", layout="nnunet", labels=lambda a: np.minimum(a, 1).astype(np.float64))
    done = edge("train", absent, *SHORT, "-o", tmp_path / "a", "--json")
    assert done.code == 0, done.err
    assert "the label `two` is in no training case: the network cannot learn it" in words_of(done)
    assert done.json["task"]["labels"] == {"background": 0, "one": 1, "two": 2}
    one = edge("train", write(tmp_path / "one", cases=1), *SHORT, "-o", tmp_path / "b", "--json")
    assert one.code == 0, one.err
    assert "there is one training case alone" in words_of(one)
    assert "the weights of the last epoch are taken" in words_of(one)
    assert one.json["best"] is None
    assert (tmp_path / "b" / "weights.safetensors").exists()


@pytest.mark.parametrize("flags", [["--cross-validate"], ["--fold", 1], ["--cross-validate", "--plan-only"]])
def test_fewer_cases_than_folds(edge: Cli, tmp_path: Path, flags: list[object]) -> None:
    done = edge("train", write(tmp_path / "data", cases=3), *SHORT, "-o", tmp_path / "run", *flags)
    assert (done.code, done.out) == (1, "")
    assert "found 3 cases; expected 5 at least, one a fold. Give folds of your own by --splits" in words_of(done)
    assert not (tmp_path / "run").exists()


def test_folds_that_nobody_takes(edge: Cli, dataset: Path, tmp_path: Path) -> None:
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps([{"train": ["case0"], "val": ["case1"]}]))
    for flags in ([], ["--fold", "all"]):
        done = edge("train", dataset, *SHORT, "-o", tmp_path / "run", "--splits", splits, *flags)
        assert (done.code, "found --splits without --fold NUMBER or --cross-validate" in words_of(done)) == (2, True)
    absent = edge("train", dataset, *SHORT, "-o", tmp_path / "run", "--splits", splits, "--fold", 1, "--plan-only")
    assert (absent.code, "found fold 1; expected 0 to 0" in words_of(absent)) == (1, True)
