"""Calibration images that INT8 should not be made from alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mednext_edge.data.recipe import Prepared, prepare
from mednext_edge.data.volume import Volume
from mednext_edge.errors import DataError
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.quantize.suitability import FEW, Suitability
from mednext_edge.task import Normalization, Task

SHAPE = (8, 9, 10)


def task_with(model: LoadedModel, **changes: Any) -> Task:
    scheme = Normalization(**{"scheme": "zscore", **changes})
    recipe = model.task.preprocessing.model_copy(update={"normalization": (scheme,), "crop_nonzero": False})
    return model.task.model_copy(update={"preprocessing": recipe})


def prepared(task: Task, image: np.ndarray, labels: np.ndarray | None = None) -> Prepared:
    volume = Volume(image.astype(np.float32)[None], np.eye(4))
    return prepare(volume, task.preprocessing, None if labels is None else Volume(labels, np.eye(4)))


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, SHAPE)


def every_label(task: Task) -> np.ndarray:
    values = sorted(task.labels.values())
    return np.resize(np.array(values, np.uint8), SHAPE)


def test_enough_good_images_are_not_spoken_of(tiny_model: LoadedModel) -> None:
    task = task_with(tiny_model)
    found = Suitability(task)
    for i in range(FEW):
        found.see(f"case_{i}", prepared(task, noise(i), every_label(task)))
    assert found.notes() == ()


def test_few_cases(tiny_model: LoadedModel) -> None:
    task = task_with(tiny_model)
    found = Suitability(task)
    found.see("a", prepared(task, noise()))
    assert found.notes() == ("INT8 was calibrated on 1 case; 8 or more show how images differ",)


def test_a_constant_image_and_a_missing_class_are_named(tiny_model: LoadedModel) -> None:
    task = task_with(tiny_model)
    found = Suitability(task)
    for i in range(FEW):
        found.see(f"case_{i}", prepared(task, noise(i), np.zeros(SHAPE, np.uint8)))
    found.see("flat", prepared(task, np.full(SHAPE, 7.0), np.zeros(SHAPE, np.uint8)))
    constant, missing = found.notes()
    assert "flat hold one value only" in constant
    assert all(name in missing for name, value in task.labels.items() if value)


@pytest.mark.parametrize(("scale", "foreign"), [(1.0, False), (0.001, True), (1000.0, True)])
def test_images_outside_the_intensities_that_were_trained(tiny_model: LoadedModel, scale: float, foreign: bool) -> None:
    """A network for 60 to 140 units gets images in other ones."""
    task = task_with(tiny_model, scheme="ct", mean=100.0, sd=20.0, lower=60.0, upper=140.0)
    found = Suitability(task)
    for i in range(FEW):
        found.see(f"case_{i}", prepared(task, scale * noise(i)))
    notes = found.notes()
    assert len(notes) == foreign
    if foreign:
        assert "case_0, case_1, case_2 and 5 more" in notes[0]
        assert "another modality or unit" in notes[0]


def test_images_that_are_not_finite_are_refused(tiny_model: LoadedModel) -> None:
    task = task_with(tiny_model)
    good = prepared(task, noise())
    bad = good.image.copy()
    bad[0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="case broken holds voxels that are not finite"):
        Suitability(task).see("broken", replace(good, image=bad))
