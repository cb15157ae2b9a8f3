"""One convolution by hand: its bias gives back what rounding takes from the mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mednext_edge.errors import ExportError
from mednext_edge.export.graph import INPUT
from mednext_edge.quantize.flavour import NVIDIA
from mednext_edge.quantize.kinds import Layer
from mednext_edge.quantize.qdq import insert
from mednext_edge.quantize.ranges import ActivationRange
from tests.quantize.graphs import HALF, SINGLE, Array, Quantized, restored, run

TYPES = {HALF: TensorProto.FLOAT16, SINGLE: TensorProto.FLOAT}
both_types = pytest.mark.parametrize("dtype", [HALF, SINGLE], ids=["float16", "float32"])


@dataclass(frozen=True)
class Single:
    """Convolutions of [1, C, 6, 5] with the weights `<name>.weight` and, where it has one, a bias."""

    model: onnx.ModelProto
    layers: dict[str, Layer]


def single(
    weights: dict[str, Array],
    biases: dict[str, Array],
    reads: dict[str, str] | None = None,
    dtype: np.dtype[np.floating] = SINGLE,
) -> Single:
    """One convolution for each of the weights, all of the image; `reads` names the bias of each."""
    nodes, outputs, layers = [], [], {}
    reads = {name: name for name in biases} if reads is None else reads
    channels = next(iter(weights.values())).shape[1]
    for name, weight in weights.items():
        inputs = [INPUT, f"{name}.weight", *([f"{reads[name]}.bias"] if name in reads else [])]
        pads = [n // 2 for n in weight.shape[2:]] * 2
        nodes.append(helper.make_node("Conv", inputs, [f"{name}_out"], name=name, pads=pads))
        outputs.append(helper.make_tensor_value_info(f"{name}_out", TYPES[dtype], [1, len(weight), 6, 5]))
        layers[name] = Layer(name, "pointwise", nn.Conv2d(1, 1, 1), (f"{name}.weight",))
    constants = [numpy_helper.from_array(value.astype(dtype), f"{name}.weight") for name, value in weights.items()]
    constants += [numpy_helper.from_array(value.astype(dtype), f"{name}.bias") for name, value in biases.items()]
    graph = helper.make_graph(
        nodes, "single", [helper.make_tensor_value_info(INPUT, TYPES[dtype], [1, channels, 6, 5])], outputs, constants
    )
    return Single(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), layers)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def seen(mean: Array) -> ActivationRange:
    return ActivationRange(10.0, 10.0, torch.from_numpy(mean.astype(np.float32)))


def mean_errors(one: Single, quantized: onnx.ModelProto, name: str, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of every output channel, with and without the new bias, for inputs of this mean that lose nothing themselves."""
    before = {init.name: numpy_helper.to_array(init).astype(np.float64) for init in one.model.graph.initializer}
    graph = Quantized(quantized.graph)
    node = graph.convolutions()[f"{name}.weight"]
    constants = graph.constants
    scale = constants[graph.makers[node.input[1]].input[1]]
    lost = before[f"{name}.weight"] - restored(constants[f"{name}.weight"], scale)
    lost = lost.reshape(lost.shape[:2]) @ mean
    old = next((n.input[2] for n in one.model.graph.node if n.name == name and len(n.input) > 2), None)
    change = constants[node.input[2]].astype(np.float64) - (before[old] if old else 0)
    return np.stack([lost - change, lost])


@both_types
def test_the_bias_gives_back_what_rounding_takes_from_the_mean(
    rng: np.random.Generator, dtype: np.dtype[np.floating]
) -> None:
    mean = rng.uniform(0.5, 2, 24)
    bias = rng.standard_normal(6)
    one = single({"a": rng.standard_normal((6, 24, 1, 1))}, {"a": bias}, dtype=dtype)
    corrected, plain = np.abs(mean_errors(one, insert(one.model, one.layers, {"a": seen(mean)}, NVIDIA), "a", mean))
    # What is left is the rounding of the bias itself.
    assert (corrected <= 1e-6 + np.finfo(dtype).eps * (np.abs(bias) + plain)).all()
    assert plain.max() > 10 * corrected.max()


def test_the_mean_output_of_a_convolution_is_kept(rng: np.random.Generator) -> None:
    """As ONNX Runtime computes it, on inputs that INT8 holds exactly."""
    weight, bias = rng.standard_normal((6, 24, 1, 1)), rng.standard_normal(6)
    one = single({"a": weight}, {"a": bias})
    image = (rng.integers(-20, 100, (1, 24, 6, 5)) * 0.125).astype(np.float32)
    range_ = ActivationRange(127 * 0.125, float(np.abs(image).max()), torch.from_numpy(image.mean(axis=(0, 2, 3))))
    exact, int8 = (run(graph, image)[0] for graph in (one.model, insert(one.model, one.layers, {"a": range_}, NVIDIA)))
    assert np.abs(int8 - exact).max() > 1e-2
    assert np.abs((int8 - exact).mean(axis=(0, 2, 3))).max() < 1e-5


def test_a_convolution_without_bias_gets_one(rng: np.random.Generator) -> None:
    mean = rng.uniform(0.5, 2, 24)
    one = single({"a": rng.standard_normal((6, 24, 1, 1))}, {})
    quantized = insert(one.model, one.layers, {"a": seen(mean)}, NVIDIA)
    onnx.checker.check_model(quantized, full_check=True)
    corrected, plain = np.abs(mean_errors(one, quantized, "a", mean))
    assert corrected.max() < 1e-6 < plain.max()


def test_biases_that_several_layers_share_are_corrected_apart(rng: np.random.Generator) -> None:
    """The exporter makes one constant of equal biases; a layer that stays in float keeps it as it was."""
    mean, bias = rng.uniform(0.5, 2, 24), rng.standard_normal(6)
    weights: dict[str, Array] = {name: rng.standard_normal((6, 24, 1, 1)) for name in "abc"}
    one = single(weights, {"a": bias}, reads=dict.fromkeys("abc", "a"))
    quantized = insert(one.model, one.layers, {"a": seen(mean), "b": seen(mean)}, NVIDIA)
    onnx.checker.check_model(quantized, full_check=True)
    for name in "ab":
        corrected, plain = np.abs(mean_errors(one, quantized, name, mean))
        assert corrected.max() < 1e-6 < plain.max()
    (kept,) = (node for node in quantized.graph.node if node.name == "c")
    assert np.array_equal(Quantized(quantized.graph).constants[kept.input[2]], bias.astype(np.float32))


@pytest.mark.parametrize("kernel", [(3, 3), (1, 3), (3, 1)])
def test_larger_kernels_keep_their_bias(rng: np.random.Generator, kernel: tuple[int, int]) -> None:
    bias = rng.standard_normal(6)
    one = single({"a": rng.standard_normal((6, 4, *kernel))}, {"a": bias})
    quantized = insert(one.model, one.layers, {"a": seen(rng.uniform(0.5, 2, 4))}, NVIDIA)
    assert np.array_equal(Quantized(quantized.graph).constants["a.bias"], bias.astype(np.float32))


def test_weights_that_several_convolutions_share_are_refused(rng: np.random.Generator) -> None:
    one = single({"a": rng.standard_normal((6, 4, 1, 1)), "b": rng.standard_normal((6, 4, 1, 1))}, {})
    one.model.graph.node[1].input[1] = "a.weight"
    with pytest.raises(ExportError, match=r"uses the weights a\.weight of layer a in 2 places"):
        insert(one.model, one.layers, {"a": seen(np.ones(4))}, NVIDIA)
