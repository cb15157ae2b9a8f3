"""Calibration patches: whose they are, where they lie, and that they are the same every time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mednext_edge.data.dataset import Case
from mednext_edge.data.volume import Volume
from mednext_edge.errors import DataError
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.quantize.calibration import FEWEST, MOST, VOXELS, CalibrationSet, default_count, draw
from mednext_edge.task import Normalization, Task

SHAPE = (24, 20, 22)


def make_case(
    name: str,
    shape: tuple[int, ...] = SHAPE,
    *,
    labelled: bool = True,
    value: float | None = None,
    channels: int = 1,
    at: tuple[int, ...] = (2, 3, 4),
) -> Case:
    """Noise, or one `value` everywhere; the label is one voxel, with the intensity 100 in the image."""
    rng = np.random.default_rng(sum(map(ord, name)))
    image = (
        rng.normal(size=(channels, *shape)).astype(np.float32) if value is None else np.full((channels, *shape), value)
    )
    labels = np.zeros(shape, np.uint8)
    if value is None:
        z, y, x = (min(a, n - 1) for a, n in zip(at, shape, strict=True))
        labels[z, y, x] = 1
        image[:, z, y, x] = 100
    volume = Volume(image.astype(np.float32), np.eye(4))
    return Case(name, lambda: volume, (lambda: Volume(labels, np.eye(4))) if labelled else None)


@pytest.fixture
def task(tiny_model: LoadedModel) -> Task:
    """Three classes, patches of 16, intensities as they are."""
    plain = tiny_model.task.preprocessing.model_copy(
        update={"normalization": (Normalization(scheme="none"),), "crop_nonzero": False}
    )
    return tiny_model.task.model_copy(update={"preprocessing": plain})


def flat(task: Task) -> Task:
    model = task.model.model_copy(update={"spatial_dims": 2})
    inference = task.inference.model_copy(update={"patch": (16, 16), "mirror_axes": ()})
    return task.model_copy(update={"model": model, "inference": inference})


def cases(count: int) -> list[Case]:
    return [make_case(f"case-{i}") for i in range(count)]


def test_shape_type_and_layout(task: Task) -> None:
    drawn = draw(cases(3), task, 5)
    assert len(drawn.patches) == 5
    for patch in drawn.patches:
        assert patch.shape == (1, 1, 16, 16, 16)
        assert patch.dtype == np.float32
        assert patch.flags.c_contiguous


def test_another_patch_than_the_tasks(task: Task) -> None:
    assert draw(cases(1), task, 1, patch=(8, 32, 16)).patches[0].shape == (1, 1, 8, 32, 16)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 40), number=st.integers(1, 12), seed=st.integers(0, 99))
def test_every_case_serves_before_one_serves_twice(tiny_model: LoadedModel, count: int, number: int, seed: int) -> None:
    served: list[str] = []

    def told(name: str) -> Case:
        volume = Volume(np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32), np.eye(4))

        def image() -> Volume:
            served.append(name)
            return volume

        return Case(name, image)

    drawn = draw([told(str(i)) for i in range(number)], tiny_model.task, count, patch=(4, 4, 4), seed=seed)
    assert len(drawn.patches) == count
    assert len(drawn.cases) == len(set(drawn.cases)) == min(count, number)
    # Images are read once each, and only those that serve.
    assert sorted(served) == sorted(drawn.cases)


@pytest.mark.parametrize(("count", "number", "shares"), [(10, 6, [1, 1, 2, 2, 2, 2]), (7, 7, [1] * 7), (9, 2, [4, 5])])
def test_shares_are_even(task: Task, count: int, number: int, shares: list[int]) -> None:
    """Case i holds the value i everywhere, so that a patch tells where it is from."""
    plain = [make_case(str(i), value=float(i + 1)) for i in range(number - 1)] + [make_case("noise")]
    values = [float(p[0, 0, 0, 0, 0]) for p in draw(plain, task, count).patches]
    whole = [v for v in values if v == round(v) and v > 0]
    counts = [whole.count(float(i + 1)) for i in range(number - 1)]
    assert sorted([*counts, count - sum(counts)]) == shares


def test_the_same_seed_draws_the_same(task: Task) -> None:
    one, two, other = (draw(cases(3), task, 6, seed=seed) for seed in (4, 4, 5))
    assert one.sha256 == two.sha256
    assert one.cases == two.cases
    assert all(np.array_equal(a, b) for a, b in zip(one.patches, two.patches, strict=True))
    assert one.sha256 != other.sha256


def test_digest_is_of_all_voxels(task: Task) -> None:
    drawn = draw(cases(2), task, 4)
    assert drawn.sha256 == hashlib.sha256(b"".join(p.tobytes() for p in drawn.patches)).hexdigest()


def holding(drawn: CalibrationSet) -> int:
    return sum(bool((patch == 100).any()) for patch in drawn.patches)


@pytest.mark.parametrize("dims", [2, 3])
def test_two_thirds_are_on_foreground(task: Task, dims: int) -> None:
    """One voxel in a large image: chance alone meets it in 1 of 27 patches, in 2-D in 1 of 400."""
    wide = [make_case(str(i), (48, 48, 48), at=(20 + i, 30, 9)) for i in range(4)]
    drawn = draw(wide, task if dims == 3 else flat(task), 120)
    assert drawn.foreground == holding(drawn)
    # 120 draws of 2/3 lie within four standard deviations; chance adds a few of the others.
    assert abs(drawn.foreground / 120 - 2 / 3) < 4 * np.sqrt(2 / 9 / 120) + 0.03


def test_without_labels_nothing_is_known_of_foreground(task: Task) -> None:
    drawn = draw([make_case("a", labelled=False)], task, 3)
    assert drawn.foreground == 0
    assert len(drawn.patches) == 3


def test_labels_that_are_empty(task: Task) -> None:
    empty = replace(make_case("a"), labels=lambda: Volume(np.zeros(SHAPE, np.uint8), np.eye(4)))
    assert draw([empty], task, 3).foreground == 0
    assert draw([empty], flat(task), 3).foreground == 0


@pytest.mark.parametrize("shape", [(5, 24, 16), (1, 1, 1), (1, 40, 40), (15, 17, 16)])
def test_images_smaller_than_the_patch_are_padded_as_the_window_pads_them(
    task: Task, shape: tuple[int, int, int]
) -> None:
    case = make_case("a", shape)
    (patch,) = draw([case], task, 1).patches
    assert patch.shape == (1, 1, 16, 16, 16)
    image = case.image().array[0]
    for axis, n in enumerate(shape):
        missing = max(0, 16 - n)
        inside = np.moveaxis(patch[0, 0], axis, 0)
        assert not inside[: missing // 2].any()
        assert not inside[16 - (missing - missing // 2) :].any()
    if all(n <= 16 for n in shape):
        inner = tuple(slice((16 - n) // 2, (16 - n) // 2 + n) for n in shape)
        assert np.array_equal(patch[0, 0][inner], image)


def test_patches_are_cut_from_the_prepared_image(tiny_model: LoadedModel) -> None:
    """With z-scores, what is drawn is normalised as the network will see it."""
    bright = make_case("a", (16, 16, 16))
    image = bright.image()
    shifted = Case("a", lambda: Volume(image.array * 7 + 1000, image.affine))
    (patch,) = draw([shifted], tiny_model.task, 1).patches
    assert patch.mean() == pytest.approx(0, abs=1e-4)
    assert patch.std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("shape", [SHAPE, (1, 30, 9)])
def test_two_dimensional_networks_take_slices(task: Task, shape: tuple[int, int, int]) -> None:
    case = make_case("a", shape)
    drawn = draw([case], flat(task), 20)
    image = case.image().array[0]
    for patch in drawn.patches:
        assert patch.shape == (1, 1, 16, 16)
        nonzero = patch[0, 0][patch[0, 0] != 0]
        assert any(np.isin(nonzero, plane).all() for plane in image)


def test_progress_counts_patches(task: Task) -> None:
    told: list[tuple[int, int]] = []
    draw(cases(2), task, 5, progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 5) for i in range(1, 6)]


def test_empty_list(task: Task) -> None:
    with pytest.raises(DataError, match="found no calibration image; expected at least one"):
        draw([], task, 4)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_constant_images(task: Task, tiny_model: LoadedModel, value: float) -> None:
    plain = [make_case(str(i), value=value) for i in range(2)]
    for one in (task, tiny_model.task):
        with pytest.raises(DataError, match="one value only; expected images with contrast"):
            draw(plain, one, 4)


def test_one_image_with_contrast_is_enough(task: Task) -> None:
    mixed: Sequence[Case] = [make_case("flat", value=1.0), make_case("noise")]
    assert len(draw(mixed, task, 4).patches) == 4


def test_wrong_channels(task: Task) -> None:
    with pytest.raises(DataError, match="2 channels; expected 1"):
        draw([make_case("a", channels=2)], task, 2)


@pytest.mark.parametrize("patch", [(16,) * 3, (64,) * 3, (96,) * 3, (128,) * 3, (160,) * 3, (256, 320, 320), (64, 64)])
def test_default_count(patch: tuple[int, ...]) -> None:
    """The same number of voxels whatever the patch, but never so few patches that one image decides."""
    count = default_count(patch)
    assert FEWEST <= count <= MOST
    assert count in (FEWEST, MOST) or VOXELS - math.prod(patch) < count * math.prod(patch) <= VOXELS
    assert default_count((128,) * 3) == 8
