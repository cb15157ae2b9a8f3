"""Grey for networks of colours and back."""

from __future__ import annotations

import numpy as np
import pytest

from mednext_edge.data.colour import as_colour
from mednext_edge.data.recipe import prepare, restore
from mednext_edge.data.volume import Volume
from mednext_edge.errors import DataError
from mednext_edge.task import Normalization, Preprocessing

COLOURS = np.random.default_rng(0).uniform(0, 255, (3, 1, 4, 6)).astype(np.float32)


def test_order_of_the_channels() -> None:
    assert np.array_equal(as_colour(COLOURS, "RGB"), COLOURS)
    assert np.array_equal(as_colour(COLOURS, "BGR"), COLOURS[[2, 1, 0]])


def test_grey_is_repeated_and_colours_are_weighted() -> None:
    grey = as_colour(COLOURS, "grey")
    assert np.allclose(grey, 0.299 * COLOURS[:1] + 0.587 * COLOURS[1:2] + 0.114 * COLOURS[2:], atol=1e-3)
    assert np.array_equal(as_colour(grey, "BGR"), np.repeat(grey, 3, axis=0))
    assert np.array_equal(as_colour(grey, "grey"), grey)


def test_other_numbers_of_channels_are_refused() -> None:
    with pytest.raises(DataError, match="image of 2 channels"):
        as_colour(COLOURS[:2], "RGB")


def test_every_image_becomes_one_size_and_comes_back() -> None:
    recipe = Preprocessing(
        colour="BGR",
        crop_nonzero=False,
        normalization=tuple(Normalization(scheme="ct", mean=mean, sd=2) for mean in (0, 10, 20)),
        size=(8, 6),
        image_order=1,
        label_order=0,
    )
    labels = Volume((COLOURS[0] > 127).astype(np.uint8), np.eye(4))
    prepared = prepare(Volume(COLOURS, np.eye(4)), recipe, labels)
    assert prepared.image.shape == (3, 1, 8, 6)
    assert prepared.labels is not None
    assert np.array_equal(prepared.labels[:, ::2], labels.array)
    same = Volume(np.repeat(np.float32([[[[50]]]] * 3), 5, axis=2), np.eye(4))
    assert np.allclose(prepare(same, recipe).image[:, 0, 0, 0], [25, 20, 15])
    scores = np.stack([1 - prepared.labels, prepared.labels]).astype(np.float32)
    assert np.array_equal(restore(scores, prepared), labels.array)
