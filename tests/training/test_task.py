"""Planning what is trained from the data."""

from __future__ import annotations

import numpy as np
import pytest

from mednext_edge.data.dataset import Case, Dataset
from mednext_edge.data.volume import Volume
from mednext_edge.training.task import plan_preprocessing


def dataset(filled: float, affine: np.ndarray) -> Dataset:
    """One image of 20^3 ones of which only the first part along z is not zero."""
    array = np.zeros((1, 20, 20, 20), np.float32)
    array[:, : int(20 * filled)] = np.random.default_rng(0).uniform(1, 2, (1, int(20 * filled), 20, 20))
    return Dataset("d", (Case("a", lambda: Volume(array, affine), None),), (), {"background": 0, "one": 1}, ("T1",))


@pytest.mark.parametrize(("filled", "masked"), [(1.0, False), (0.8, False), (0.5, True)])
def test_images_that_are_mostly_zero_are_normalised_over_their_mask(filled: float, masked: bool) -> None:
    recipe = plan_preprocessing(dataset(filled, np.eye(4)))
    assert [entry.masked for entry in recipe.normalization] == [masked]
    forced = plan_preprocessing(dataset(filled, np.eye(4)), masked=not masked)
    assert [entry.masked for entry in forced.normalization] == [not masked]


def test_images_are_turned_to_the_orientation_of_the_training_images() -> None:
    assert plan_preprocessing(dataset(1.0, np.eye(4))).orientation == "RAS"
    assert plan_preprocessing(dataset(1.0, np.diag([-1.0, -1.0, 1.0, 1.0]))).orientation == "LPS"
