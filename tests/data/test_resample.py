"""Resampling: properties of the grid convention, scipy as the second opinion, reference values of scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mednext_edge.data.resample import coarse_axis, resample, resample_labels

SHAPES = st.tuples(*[st.integers(1, 9)] * 3)
ORDERS = st.sampled_from([0, 1, 3])


@settings(max_examples=30, deadline=None)
@given(
    old=SHAPES, new=SHAPES, order=ORDERS, apart=st.sampled_from([None, 0, 1, 2]), value=st.floats(-1e4, 1e4, width=32)
)
def test_a_constant_stays_constant(
    old: tuple[int, ...], new: tuple[int, ...], order: int, apart: int | None, value: float
) -> None:
    resampled = resample(np.full(old, value, np.float32), new, order, apart)
    assert resampled.shape == new
    np.testing.assert_allclose(resampled, value, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(old=SHAPES, new=SHAPES, order=ORDERS, seed=st.integers(0, 9))
def test_mirroring_and_resampling_commute(old: tuple[int, ...], new: tuple[int, ...], order: int, seed: int) -> None:
    # A new centre on the border of two voxels takes the upper one, whichever way round.
    between = any((2 * i + 1) * old[0] % (2 * new[0]) == 0 for i in range(new[0]))
    assume(order > 0 or old[0] == new[0] or not between)
    array = np.random.default_rng(seed).normal(size=old).astype(np.float32)
    np.testing.assert_allclose(resample(array, new, order)[::-1], resample(array[::-1], new, order), atol=2e-5)


@settings(max_examples=30, deadline=None)
@given(old=SHAPES, new=SHAPES, seed=st.integers(0, 9))
def test_linear_agrees_with_scipy(old: tuple[int, ...], new: tuple[int, ...], seed: int) -> None:
    array = np.random.default_rng(seed).uniform(size=old).astype(np.float32)
    zoom = [n / o for n, o in zip(new, old, strict=True)]
    expected = ndimage.zoom(array.astype(np.float64), zoom, order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(resample(array, new, 1), expected, atol=5e-6)


@pytest.mark.parametrize("order", [1, 3])
def test_a_ramp_stays_a_ramp_of_the_same_position(order: int) -> None:
    ramp = np.broadcast_to(np.arange(40, dtype=np.float32)[:, None, None], (40, 3, 3)).copy()
    resampled = resample(ramp, (60, 3, 3), order)[:, 1, 1]
    centres = (np.arange(60) + 0.5) * 40 / 60 - 0.5
    inner = slice(15, -15)  # the spline feels the constant continuation beyond the border
    np.testing.assert_allclose(resampled[inner], centres[inner], atol=1e-3)


def test_reference_values() -> None:
    # skimage.transform.resize(array, shape, order, mode="edge", anti_aliasing=False), version 0.26.0.
    array = np.array([[0, 1, 4, 9, 16], [1, 0, 2, 8, 3], [5, 5, 1, 7, 2]], np.float32)
    expected = {
        ((2, 4), 1): [0.3125, 1.78125, 6.78125, 12.25, 3.96875, 2.8125, 5.0, 2.875],
        ((2, 4), 3): [0.0, 1.3448011, 6.7575486, 12.9408721, 4.2795075, 2.2477044, 5.4146857, 2.2235125],
        ((4, 2), 3): [0.6876571, 11.1293175, 0.0, 8.7654878, 2.0709684, 6.7743326, 5.9236634, 6.6143593],
    }
    for (shape, order), values in expected.items():
        np.testing.assert_allclose(resample(array, shape, order).ravel(), values, atol=2e-6)


@settings(max_examples=20, deadline=None)
@given(old=SHAPES, new=SHAPES, order=st.sampled_from([0, 1, 3]), apart=st.sampled_from([None, 0, 2]))
def test_range_and_labels_are_kept(old: tuple[int, ...], new: tuple[int, ...], order: int, apart: int | None) -> None:
    labels = np.random.default_rng(0).choice([0, 1, 300], old).astype(np.uint16)
    resampled = resample_labels(labels, new, order, apart)
    assert resampled.dtype == np.uint16
    assert resampled.shape == new
    assert set(np.unique(resampled)) <= {0, *np.unique(labels)}
    array = labels.astype(np.float32)
    image = resample(array, new, order, apart)
    assert array.min() <= image.min()
    assert image.max() <= array.max()


def test_same_shape_is_not_touched() -> None:
    array = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    assert resample(array, (3, 4, 5), 3, apart=1) is array
    labels = np.zeros((3, 4, 5), np.uint8)
    assert resample_labels(labels, (3, 4, 5), 1) is labels


def test_labels_at_half_a_voxel() -> None:
    # The new centre lies between both voxels: either label reaches one half, and the larger value wins.
    assert resample_labels(np.array([[[1, 2]]], np.uint8), (1, 1, 1), 1).item() == 2
    # No label reaches one half among three.
    assert resample_labels(np.array([[[1, 2, 3, 4]]], np.uint8), (1, 1, 1), 0).item() in (2, 3)
    corner = np.zeros((2, 2, 1), np.uint8)
    corner[0, 0], corner[0, 1], corner[1, 0] = 1, 2, 3
    assert resample_labels(corner, (1, 1, 1), 1).item() == 0


def test_apart_interpolates_the_plane_alone() -> None:
    array = np.random.default_rng(0).normal(size=(4, 6, 6)).astype(np.float32)
    planes = np.stack([resample(plane, (9, 5), 3) for plane in array])
    np.testing.assert_array_equal(resample(array, (4, 9, 5), 3, apart=0), planes)
    np.testing.assert_array_equal(resample(array, (8, 9, 5), 3, apart=0), np.repeat(planes, 2, axis=0))
    turned = resample(np.moveaxis(array, 0, 2).copy(), (9, 5, 8), 3, apart=2)
    np.testing.assert_array_equal(np.moveaxis(turned, 2, 0), np.repeat(planes, 2, axis=0))


@pytest.mark.parametrize(
    ("spacing", "target", "axis"),
    [
        ((1, 1, 1), (1, 1, 1), None),
        ((5, 1, 1), (1, 1, 1), 0),
        ((1, 1, 5), (1, 1, 1), 2),
        ((1, 1, 1), (1, 5, 1), 1),
        ((3, 1, 1), (1, 1, 1), None),  # at the threshold, not over it
        ((5, 5, 1), (1, 1, 1), None),
        ((5, 1, 1), (1, 1, 9), 0),
    ],
)
def test_coarse_axis(spacing: tuple[float, ...], target: tuple[float, ...], axis: int | None) -> None:
    assert coarse_axis(spacing, target, 3.0) == axis
