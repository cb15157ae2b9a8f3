"""Each augmentation does what its sentence says, as often as nnU-Net does it."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mednext_edge.data.resample import resample
from mednext_edge.training import augment
from mednext_edge.training.augment import Step, change_intensities, draw_flips, draw_matrix, intensity_steps

Image = NDArray[np.float32]
PATCH = (24, 20, 16)


def image(seed: int = 0) -> Image:
    return np.random.default_rng(seed).normal(3, 2, PATCH).astype(np.float32)


def draws(make: object, count: int = 200) -> list[Image]:
    rng = np.random.default_rng(1)
    return [make(image(), rng) for _ in range(count)]  # type: ignore[operator]


def test_matrices_turn_and_scale_as_often_and_as_far_as_nnunet() -> None:
    rng = np.random.default_rng(0)
    found = [draw_matrix((64, 64, 64), rng) for _ in range(4000)]
    assert np.mean([m is None for m in found]) == pytest.approx(0.64, abs=0.03)
    factors = np.array([abs(np.linalg.det(m)) ** (1 / 3) for m in found if m is not None])
    scaled = factors[np.abs(factors - 1) > 1e-9]
    assert len(scaled) / len(found) == pytest.approx(0.2, abs=0.02)
    assert 0.7 <= scaled.min() < 0.72 and 1.38 < scaled.max() <= 1.4
    assert np.mean(scaled < 1) == pytest.approx(0.5, abs=0.06)
    for matrix, factor in zip((m for m in found if m is not None), factors, strict=True):
        rotation = matrix / factor
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
        # Three turns of at most 30 degrees.
        assert math.acos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)) < math.radians(90)


def test_thick_slices_stay_in_their_plane() -> None:
    rng = np.random.default_rng(0)
    found = [m for m in (draw_matrix((16, 64, 64), rng) for _ in range(400)) if m is not None]
    angles = []
    for matrix in found:
        np.testing.assert_array_equal(matrix[0], [1, 0, 0])
        np.testing.assert_array_equal(matrix[:, 0], [1, 0, 0])
        angles.append(abs(math.degrees(math.atan2(matrix[2, 1], matrix[1, 1]))))
    assert max(angles) > 120
    wide = [m for m in (draw_matrix((32, 96), rng) for _ in range(400)) if m is not None]
    assert 13 < max(abs(math.degrees(math.atan2(m[1, 0], m[0, 0]))) for m in wide) < 15.01


def test_noise() -> None:
    added = np.stack(draws(partial(augment.noise, sd=0.1), 5)) - image()
    assert added.std() == pytest.approx(0.1, rel=0.03)


def test_the_noise_of_a_patch_has_a_deviation_of_up_to_a_tenth() -> None:
    rng, flat = np.random.default_rng(0), np.zeros((32, 32, 32), np.float32)
    found = [float(intensity_steps(PATCH)[0].make(rng)(flat, rng).std()) for _ in range(200)]
    assert 0 <= min(found) < 0.005 and 0.095 < max(found) < 0.1005
    assert np.mean(found) == pytest.approx(0.05, abs=0.005)


def test_blur_has_a_sigma_of_half_a_voxel_to_one() -> None:
    """The variance of what a point becomes; at half a voxel it is below sigma's square, as the filter is sampled."""
    point, rng = np.zeros((25, 1, 1), np.float32), np.random.default_rng(0)
    point[12] = 1
    far = (np.arange(25, dtype=np.float64) - 12) ** 2
    found = [float(augment.blur(point, rng)[:, 0, 0] @ far) for _ in range(200)]
    assert 0.2 < min(found) < 0.25 and 0.97 < max(found) <= 1.0


def test_blur_smooths_and_keeps_the_mean() -> None:
    for blurred in draws(augment.blur, 10):
        assert blurred.std() < image().std() * 0.8
        assert blurred.mean() == pytest.approx(image().mean(), rel=1e-2)


def test_brightness() -> None:
    factors = [float((x / image()).mean()) for x in draws(augment.brightness)]
    assert 0.75 <= min(factors) < 0.77 and 1.23 < max(factors) <= 1.25


def test_contrast_stays_within_the_range() -> None:
    for x in draws(augment.contrast, 50):
        assert x.min() >= image().min() and x.max() <= image().max()
        assert 0.74 < x.std() / image().std() < 1.26


def test_low_resolution() -> None:
    for keep in (True, False):
        for x in draws(partial(augment.low_resolution, keep_first=keep), 10):
            assert x.shape == PATCH and x.dtype == np.float32
            assert x.min() >= image().min() and x.max() <= image().max()
    lines = np.broadcast_to(image()[:, :1, :1], PATCH).copy()
    # Slices that differ from one another alone are left as they are.
    found = augment.low_resolution(lines, np.random.default_rng(3), keep_first=True)
    np.testing.assert_allclose(found, lines, atol=1e-5)


def test_low_resolution_halves_at_most_by_nearest_neighbours_and_comes_back_by_splines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[tuple[int, ...], int]] = []

    def watched(array: Image, shape: tuple[int, ...], order: int) -> Image:
        asked.append((shape, order))
        return resample(array, shape, order)

    monkeypatch.setattr(augment, "resample", watched)
    draws(partial(augment.low_resolution, keep_first=False))
    down, up = asked[::2], asked[1::2]
    zooms = np.array([shape for shape, _ in down]) / PATCH
    assert {order for _, order in down} == {0}
    assert {*up} == {(PATCH, 3)}
    assert 0.5 <= zooms[:, 0].min() < 0.55 and 0.95 < zooms[:, 0].max() <= 1
    assert np.ptp(zooms, axis=1).max() < 1 / 16  # one zoom for all axes, up to a voxel


@pytest.mark.parametrize("inverted", [True, False])
def test_gamma_is_a_power_of_seven_tenths_to_one_and_a_half(inverted: bool) -> None:
    ramp = np.array([0, 0.5, 1], np.float32).reshape(3, 1, 1)
    rng, powers = np.random.default_rng(0), []
    for _ in range(400):
        low, middle, high = augment.gamma(ramp, rng, inverted=inverted).ravel()
        share = (high - middle if inverted else middle - low) / (high - low)
        powers.append(math.log(share) / math.log(0.5))
    assert 0.7 - 1e-4 <= min(powers) < 0.71
    assert 1.48 < max(powers) < 1.5001
    assert np.mean(np.array(powers) < 1) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("inverted", [True, False])
def test_gamma_keeps_mean_and_deviation(inverted: bool) -> None:
    for x in draws(partial(augment.gamma, inverted=inverted), 20):
        assert x.mean() == pytest.approx(image().mean(), rel=1e-4)
        assert x.std() == pytest.approx(image().std(), rel=1e-4)
        # Monotonic: voxels keep their order.
        order = np.argsort(image().ravel())
        assert (np.diff(x.ravel()[order]) >= -1e-5).all()


def test_chances() -> None:
    """As the recipe has them: of the patch, and of each channel."""
    found = [(step.chance, step.each) for step in intensity_steps(PATCH)]
    assert found == [(0.1, 1), (0.2, 0.5), (0.15, 1), (0.15, 1), (0.25, 0.5), (0.1, 1), (0.3, 1)]
    rng, hits = np.random.default_rng(0), np.zeros(2)
    step = Step(0.5, 0.5, lambda _: lambda channel, _: channel + 1)
    for _ in range(2000):
        hits += change_intensities(torch.zeros(2, 1, 1, 1), (step,), rng).numpy().ravel()
    np.testing.assert_allclose(hits / 2000, 0.25, atol=0.03)


def test_flips() -> None:
    rng = np.random.default_rng(0)
    found = [draw_flips((0, 2), rng) for _ in range(400)]
    assert {*found} == {(), (0,), (2,), (0, 2)}
    assert draw_flips((), rng) == ()


def test_constant_patches_survive_everything() -> None:
    flat = torch.zeros(1, 8, 8, 8)
    steps = tuple(Step(1.0, 1.0, step.make) for step in intensity_steps((8, 8, 8)))
    assert torch.isfinite(change_intensities(flat, steps, np.random.default_rng(0))).all()
