"""Batches are a function of seed and step; foreground is where the plan wants it; labels stay labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mednext_edge.data.recipe import Grid, Prepared
from mednext_edge.errors import DataError
from mednext_edge.training.batches import BatchSource
from mednext_edge.training.plan import TrainingPlan


def case(shape: tuple[int, int, int], corner: bool = False, seed: int = 0, channels: int = 1) -> Prepared:
    """Noise with two cubes of labels 1 and 2; in the very corner if asked for."""
    labels = np.zeros(shape, np.uint8)
    if corner:
        labels[:2, :2, :2] = 1
    else:
        middle = tuple(slice(n // 2 - 2, n // 2 + 2) for n in shape)
        labels[middle] = 1
        labels[middle[0], middle[1], shape[2] // 2] = 2
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(channels, *shape)).astype(np.float32) + 10 * labels
    flat = np.array([[0, 1], [1, 1], [2, 1]], dtype=np.float64)
    box = tuple(slice(0, n) for n in shape)
    return Prepared(image, labels, Grid(flat, flat, (0, 1, 2), shape, box, (1.0,) * 3, (1.0,) * 3, shape, None))


def plan(**changes: Any) -> TrainingPlan:
    small: dict[str, Any] = {"patch": (32, 16, 16), "batch": 3, "seed": 7}
    return TrainingPlan(**small | changes)


FLAT = {"patch": (32, 16), "mirror_axes": (0, 1)}
CASES = [case((40, 24, 20)), case((20, 30, 33), seed=1)]


@pytest.mark.parametrize("changes", [{}, {"augment": False}, FLAT], ids=["3-D", "not augmented", "2-D"])
def test_a_batch_is_a_function_of_seed_and_step(changes: dict[str, Any]) -> None:
    first, second = BatchSource(CASES, plan(**changes)), BatchSource(CASES, plan(**changes))
    for step in (0, 5, 1):
        for a, b in zip(first.batch(step), second.batch(step), strict=True):
            assert torch.equal(a, b)
    other = BatchSource(CASES, plan(**changes, seed=8))
    assert not torch.equal(first.batch(0)[0], other.batch(0)[0])
    assert not torch.equal(first.batch(0)[0], first.batch(1)[0])


def test_the_stream_does_not_depend_on_where_it_starts() -> None:
    source = BatchSource(CASES, plan(batch=1))
    whole = list(source.stream(0, 5))
    assert len(whole) == 5
    for (image, label), (late_image, late_label) in zip(whole[3:], source.stream(3, 5), strict=True):
        assert torch.equal(image, late_image)
        assert torch.equal(label, late_label)
    assert not list(source.stream(5, 5))
    assert not list(source.stream(6, 5))


def test_the_global_random_state_plays_no_part() -> None:
    source = BatchSource(CASES, plan())
    torch.manual_seed(1)
    np.random.seed(1)
    before = source.batch(2)[0]
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(source.batch(2)[0], before)


@pytest.mark.parametrize("changes", [{}, {"augment": False}, FLAT], ids=["3-D", "not augmented", "2-D"])
@pytest.mark.parametrize("channels", [1, 2])
def test_shapes_types_and_label_values(changes: dict[str, Any], channels: int) -> None:
    chosen = plan(**changes)
    source = BatchSource([case((40, 24, 20), channels=channels), case((9, 8, 40), channels=channels)], chosen)
    seen: set[float] = set()
    for step in range(12):
        images, labels = source.batch(step)
        assert type(images) is torch.Tensor
        assert type(labels) is torch.Tensor
        assert images.shape == (3, channels, *chosen.patch)
        assert labels.shape == (3, 1, *chosen.patch)
        assert images.dtype == labels.dtype == torch.float32
        assert images.is_contiguous()
        assert torch.isfinite(images).all()
        seen |= set(np.unique(labels.numpy()).tolist())
    assert seen == {0, 1, 2}


def test_image_and_label_move_together() -> None:
    """Bright is where the label is, whatever the augmentation did to space."""
    source = BatchSource([case((40, 24, 20))], plan(foreground=1.0, batch=1))
    gaps = []
    for step in range(30):
        images, labels = source.batch(step)
        if (labels > 0).any():
            gaps.append((images[labels == 1].mean() - images[labels == 0].mean()).item())
    assert len(gaps) >= 28
    # The cube is ten standard deviations above its surroundings; misplaced labels would see nothing of it.
    assert min(gaps) > 2
    assert np.median(gaps) > 6


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("flat", [False, True])
def test_foreground_in_the_corner_is_found(augment: bool, flat: bool) -> None:
    """Patches lie within the image, so that foreground at its very border is within the patch that is centred on it."""
    changes = FLAT if flat else {}
    source = BatchSource([case((60, 50, 40), corner=True)], plan(foreground=1.0, batch=4, augment=augment, **changes))
    found = [bool((label > 0).any()) for step in range(10) for label in source.batch(step)[1]]
    # Rotation and scaling, one in five each, may turn it out of the patch.
    assert np.mean(found) >= (0.75 if augment else 1.0)


@pytest.mark.parametrize(
    ("batch", "share", "least"), [(3, 1 / 3, 1), (2, 1 / 3, 1), (6, 0.5, 3), (4, 1.0, 4), (1, 0.01, 1)]
)
def test_share_of_patches_on_foreground(batch: int, share: float, least: int) -> None:
    """The last ones of each batch, at least one; chance alone meets the corner hardly ever."""
    source = BatchSource(
        [case((96, 96, 96), corner=True)], plan(batch=batch, foreground=share, augment=False, patch=(32, 16, 16))
    )
    for step in range(5):
        on = [bool((label > 0).any()) for label in source.batch(step)[1]]
        assert all(on[batch - least :])


def test_no_share_no_search() -> None:
    source = BatchSource([case((96, 96, 96), corner=True)], plan(foreground=0.0, augment=False))
    assert sum(bool((source.batch(step)[1] > 0).any()) for step in range(10)) <= 2


def test_a_case_without_foreground_still_serves() -> None:
    empty = case((40, 24, 20))
    empty = Prepared(empty.image, np.zeros_like(empty.labels), empty.grid)
    for changes in ({}, FLAT):
        assert not BatchSource([empty], plan(foreground=1.0, **changes)).batch(0)[1].any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 40), (5, 64, 3)])
def test_images_smaller_than_the_patch(shape: tuple[int, int, int]) -> None:
    labels = np.ones(shape, np.uint8)
    small = Prepared(np.ones((1, *shape), np.float32), labels, case((8, 8, 8)).grid)
    images, found = BatchSource([small], plan(foreground=1.0, augment=False)).batch(0)
    assert images.shape == (3, 1, 32, 16, 16)
    assert (found > 0).any()


def test_no_case_and_no_labels() -> None:
    with pytest.raises(DataError, match="found no training case"):
        BatchSource([], plan())
    one = case((40, 24, 20))
    with pytest.raises(DataError, match="without labels"):
        BatchSource([Prepared(one.image, None, one.grid)], plan())
