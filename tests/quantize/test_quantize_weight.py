"""Weights as INT8 with a scale for each output channel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mednext_edge.quantize.qdq import quantize_weight, representable
from tests.quantize.graphs import HALF, SINGLE, Array, restored

both_types = pytest.mark.parametrize("dtype", [HALF, SINGLE], ids=["float16", "float32"])


def check_quantized(weight: Array) -> tuple[NDArray[np.int8], Array]:
    """What holds for any weights; returns them quantised."""
    integers, scale = quantize_weight(weight)
    assert integers.shape == weight.shape
    assert integers.dtype == np.int8
    assert np.abs(integers.astype(int)).max() <= 127
    assert scale.shape == weight.shape[:1]
    assert scale.dtype == weight.dtype
    assert np.isfinite(scale).all()
    assert (scale >= np.finfo(weight.dtype).smallest_normal).all()
    error = np.abs(restored(integers, scale) - weight.astype(np.float64)).reshape(len(weight), -1).max(axis=1)
    assert (error <= scale.astype(np.float64) / 2).all()
    return integers, scale


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from([HALF, SINGLE]),
    shape=st.sampled_from([(4, 3, 1, 1, 1), (6, 1, 3, 3, 3), (1, 1, 1, 1), (5, 2, 3, 3)]),
    octaves=st.lists(st.integers(-24, 14), min_size=6, max_size=6),
    seed=st.integers(0, 2**16),
)
def test_any_weights(dtype: np.dtype[np.floating], shape: tuple[int, ...], octaves: list[int], seed: int) -> None:
    """Every output channel has a scale of its own, so that their sizes may differ by many octaves."""
    size = 2.0 ** np.array(octaves[: shape[0]]).reshape(-1, *(1,) * (len(shape) - 1))
    weight = (np.random.default_rng(seed).uniform(-1, 1, shape) * size).astype(dtype)
    check_quantized(weight)


@both_types
def test_the_largest_weight_of_every_channel_is_127(dtype: np.dtype[np.floating]) -> None:
    weight = (
        np.random.default_rng(0).standard_normal((8, 5, 3, 3, 3)) * 2.0 ** np.arange(8).reshape(8, 1, 1, 1, 1)
    ).astype(dtype)
    integers, scale = check_quantized(weight)
    assert (np.abs(integers).reshape(8, -1).max(axis=1) == 127).all()
    peak = np.abs(weight.astype(np.float64)).reshape(8, -1).max(axis=1)
    assert scale.astype(np.float64) == pytest.approx(peak / 127, rel=float(np.finfo(dtype).eps))


@both_types
def test_channels_without_weights(dtype: np.dtype[np.floating]) -> None:
    weight = np.zeros((3, 4, 1, 1, 1), dtype)
    weight[1] = 0.5
    integers, scale = check_quantized(weight)
    assert not integers[[0, 2]].any()
    assert (integers[1] == 127).all()
    assert (scale > 0).all()


def test_weights_too_small_for_a_scale_in_float16() -> None:
    """The scale stays normal; such weights keep fewer bits, and below half a scale none."""
    tiny = float(np.finfo(HALF).smallest_normal)
    weight = np.array([100, 10, 1, 0.3], HALF).reshape(4, 1, 1, 1) * HALF.type(tiny)
    integers, scale = check_quantized(weight)
    assert (scale == tiny).all()
    assert integers.ravel().tolist() == [100, 10, 1, 0]


def test_tiny_weights_keep_their_bits_in_float32() -> None:
    weight = (np.random.default_rng(0).standard_normal((4, 9, 1, 1)) * 1e-30).astype(SINGLE)
    integers, _ = check_quantized(weight)
    assert (np.abs(integers).reshape(4, -1).max(axis=1) == 127).all()


@both_types
def test_the_largest_weights_that_there_are(dtype: np.dtype[np.floating]) -> None:
    weight = np.array([[1, -1, 0.5]], dtype).reshape(1, 3, 1, 1) * np.finfo(dtype).max
    integers, _ = check_quantized(weight)
    assert integers.ravel()[:2].tolist() == [127, -127]
    assert integers.ravel()[2] in (63, 64)  # 63.5 and the rounding of the scale


@both_types
@given(value=st.floats(0, 1e4))
def test_representable_scales(dtype: np.dtype[np.floating], value: float) -> None:
    scale = representable(value, dtype)
    assert scale.dtype == dtype
    smallest = float(np.finfo(dtype).smallest_normal)
    assert float(scale) == pytest.approx(max(value, smallest), rel=float(np.finfo(dtype).eps))
    assert float(scale) >= smallest
