"""Quantisers move in front of data movement: the same numbers, and only where nothing else would change."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from mednext_edge.export.early_quantizers import quantize_early

CHANNELS, SIZE = 8, 4


def quantizer(value: ov.Output, bound: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> ov.Node:
    return ops.fake_quantize(value, *(ops.constant(v) for v in (-bound, bound, -bound, bound)), 255)


def interleaved(x: ov.Node, bound: np.ndarray[tuple[int, ...], np.dtype[np.float32]], *, second: bool) -> ov.Model:
    """Eight maps joined, interleaved, cut, quantised; `second` reads the cut numbers once more."""
    joined = ops.concat([ops.multiply(x, np.float32(i + 1)) for i in range(8)], 1)
    volume = ops.depth_to_space(joined, "blocks_first", 2)
    cut = ops.slice(volume, *(np.array(v) for v in ([0, 0, 0], [-1, -1, -1], [1, 1, 1], [2, 3, 4])))
    result = ops.relu(quantizer(cut.output(0), bound))
    return ov.Model([result, ops.abs(cut)] if second else [result], [x])


def order(model: ov.Model) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops()]


def run(model: ov.Model, x: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> object:
    return ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)[0]


@pytest.mark.parametrize("sizes", [(SIZE, SIZE, SIZE), (-1, -1, -1)])
def test_same_numbers(sizes: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal((1, CHANNELS, SIZE, SIZE, SIZE)).astype(np.float32)
    model = interleaved(ops.parameter([1, CHANNELS, *sizes], np.float32), np.float32(4.0), second=False)
    before = run(model, x)
    assert quantize_early(model) == 1
    found = order(model)
    assert found.count("FakeQuantize") == 8
    assert max(i for i, kind in enumerate(found) if kind == "FakeQuantize") < found.index("DepthToSpace")
    assert np.array_equal(run(model, x), before)


def test_a_range_per_channel_stays() -> None:
    bound = np.linspace(1, 2, CHANNELS, dtype=np.float32).reshape(1, -1, 1, 1, 1)
    model = interleaved(ops.parameter([1, CHANNELS, SIZE, SIZE, SIZE], np.float32), bound, second=False)
    assert quantize_early(model) == 0


def test_numbers_read_twice_stay_as_they_are() -> None:
    model = interleaved(ops.parameter([1, CHANNELS, SIZE, SIZE, SIZE], np.float32), np.float32(4.0), second=True)
    assert quantize_early(model) == 0
    assert order(model).count("FakeQuantize") == 1
