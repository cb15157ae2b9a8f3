"""Five-fold cross-validation with the very folds of nnU-Net, or with those of a file.

nnU-Net draws scikit-learn's KFold(5, shuffle=True, random_state=12345) over the sorted names of the cases.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mednext_edge.data.dataset import Dataset
from mednext_edge.errors import DataError

FOLDS = 5
SEED = 12345


@dataclass(frozen=True)
class Fold:
    """Names of the cases to train on and of those held out."""

    training: tuple[str, ...]
    validation: tuple[str, ...]


def nnunet_folds(names: Iterable[str], count: int = FOLDS) -> tuple[Fold, ...]:
    """The folds of these cases.

    Raises:
        DataError: fewer cases than folds.
    """
    keys = sorted(names)
    if len(keys) < count:
        raise DataError(
            f"found {len(keys)} cases; expected {count} at least, one a fold. Give folds of your own by --splits, or "
            "leave out --fold and --cross-validate"
        )
    order = np.arange(len(keys))
    np.random.RandomState(SEED).shuffle(order)
    folds = []
    for held in np.array_split(order, count):
        outside = set(held.tolist())
        folds.append(
            Fold(
                tuple(key for i, key in enumerate(keys) if i not in outside),
                tuple(key for i, key in enumerate(keys) if i in outside),
            )
        )
    return tuple(folds)


def read_folds(path: Path) -> tuple[Fold, ...]:
    """The folds of nnU-Net v2's `splits_final.json`: a list of {"train": [names], "val": [names]}.

    Raises:
        DataError: not such a file, or a case on both sides of a fold.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, list) or not content:
        raise DataError(f'{path}: expected a list of {{"train": [...], "val": [...]}}, as in splits_final.json')
    folds = []
    for i, entry in enumerate(content):
        sides = [entry.get(side) if isinstance(entry, dict) else None for side in ("train", "val")]
        if not all(isinstance(side, list) and side and all(isinstance(n, str) for n in side) for side in sides):
            raise DataError(f'{path}: fold {i} has no "train" and "val" lists of case names')
        fold = Fold(*(tuple(side or ()) for side in sides))
        if both := sorted(set(fold.training) & set(fold.validation)):
            raise DataError(f"{path}: fold {i} has {len(both)} cases in both lists, such as `{both[0]}`")
        folds.append(fold)
    return tuple(folds)


def take_fold(dataset: Dataset, number: int, folds: Sequence[Fold] | None = None) -> Dataset:
    """The data set split anew: one fold is held out.

    Args:
        dataset: all of its cases are split, whichever side they were on.
        number: of the fold, from 0.
        folds: other folds than nnU-Net's.

    Raises:
        DataError: fewer cases than folds, no such fold, or a fold that names a case that is not there.
    """
    cases = {case.name: case for case in (*dataset.training, *dataset.validation)}
    folds = nnunet_folds(cases) if folds is None else folds
    if not 0 <= number < len(folds):
        raise DataError(f"found fold {number}; expected 0 to {len(folds) - 1}")
    fold = folds[number]
    if absent := [name for name in (*fold.training, *fold.validation) if name not in cases]:
        raise DataError(
            f"fold {number} names {len(absent)} cases that {dataset.name} does not have, such as `{absent[0]}`"
        )
    return replace(
        dataset,
        training=tuple(cases[name] for name in fold.training),
        validation=tuple(cases[name] for name in fold.validation),
    )


def take_all(dataset: Dataset) -> Dataset:
    """Everything for training and nothing held out (nnU-Net's fold `all`)."""
    cases = {case.name: case for case in (*dataset.training, *dataset.validation)}
    return replace(dataset, training=tuple(cases[name] for name in sorted(cases)), validation=())
