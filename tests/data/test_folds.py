"""Folds: scikit-learn's, a file's, and what cannot be split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mednext_edge.data.dataset import Case, Dataset, validation_names
from mednext_edge.data.folds import Fold, nnunet_folds, read_folds, take_all, take_fold
from mednext_edge.errors import DataError


def dataset(training: str, validation: str = "") -> Dataset:
    def cases(names: str) -> tuple[Case, ...]:
        return tuple(Case(name, lambda: None) for name in names)  # type: ignore[arg-type,return-value]

    return Dataset("letters", cases(training), cases(validation), {"background": 0, "one": 1}, ("MRI",))


def names(cases: tuple[Case, ...]) -> str:
    return "".join(case.name for case in cases)


@pytest.mark.parametrize("count", [5, 6, 9, 10, 52, 260])
def test_the_folds_are_those_of_scikit_learn(count: int) -> None:
    from sklearn.model_selection import KFold

    keys = [f"case_{i:03d}" for i in range(count)]
    expected = KFold(n_splits=5, shuffle=True, random_state=12345).split(keys)
    found = nnunet_folds(reversed(keys))
    for fold, (train, held) in zip(found, expected, strict=True):
        assert fold.training == tuple(keys[i] for i in train)
        assert fold.validation == tuple(keys[i] for i in held)
    assert found[0].validation == validation_names(keys)


def test_a_fold_takes_the_cases_of_both_sides() -> None:
    whole = dataset("abcdefg", "hij")
    held = [names(take_fold(whole, number).validation) for number in range(5)]
    assert sorted("".join(held)) == list("abcdefghij")
    one = take_fold(whole, 3)
    assert set(names(one.training)) | set(names(one.validation)) == set("abcdefghij")
    everything = take_all(whole)
    assert (names(everything.training), everything.validation) == ("abcdefghij", ())


@pytest.mark.parametrize(
    ("cases", "number", "message"),
    [
        ("abcd", 0, "found 4 cases; expected 5 at least"),
        ("abcde", 5, "found fold 5; expected 0 to 4"),
        ("abcde", -1, "found fold -1"),
    ],
)
def test_what_cannot_be_split(cases: str, number: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        take_fold(dataset(cases), number)


def test_folds_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps([{"train": ["b", "a"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]))
    folds = read_folds(file)
    assert folds[1] == Fold(("c",), ("a", "b"))
    assert names(take_fold(dataset("abc"), 0, folds).training) == "ba"
    with pytest.raises(DataError, match="names 1 cases that letters does not have, such as `c`"):
        take_fold(dataset("ab"), 0, folds)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "cannot be read as JSON"),
        ([], "expected a list"),
        ({"train": ["a"]}, "expected a list"),
        ([{"train": ["a"]}], "fold 0 has no"),
        ([{"train": ["a"], "val": []}], "fold 0 has no"),
        ([{"train": ["a"], "val": [1]}], "fold 0 has no"),
        ([{"train": ["a", "b"], "val": ["b"]}], "1 cases in both lists, such as `b`"),
    ],
)
def test_broken_files(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "splits.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_folds(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_folds(tmp_path / "absent.json")
