"""INT8 in an ONNX graph: its weights, its form, and what it computes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from mednext_edge.errors import ExportError, TargetUnavailableError
from mednext_edge.export.graph import INPUT
from mednext_edge.fusion.parity import ParityConvTranspose
from mednext_edge.nvidia.build import build_plan
from mednext_edge.nvidia.providers import PROVIDERS
from mednext_edge.nvidia.recipe import BuildRecipe
from mednext_edge.quantize.flavour import NVIDIA, Flavour
from mednext_edge.quantize.kinds import Layer, find
from mednext_edge.quantize.qdq import MOVING, insert, quantize_weight, representable
from mednext_edge.quantize.ranges import ActivationRange
from tests.quantize.networks import NETWORKS, Network, network

Array = NDArray[np.floating]
HALF, SINGLE = np.dtype(np.float16), np.dtype(np.float32)
TYPES = {HALF: TensorProto.FLOAT16, SINGLE: TensorProto.FLOAT}
both_types = pytest.mark.parametrize("dtype", [HALF, SINGLE], ids=["float16", "float32"])

# Weights ----------------------------------------------------------------------------------------------------------


def restored(integers: NDArray[np.int8], scale: Array) -> NDArray[np.float64]:
    return integers * scale.astype(np.float64).reshape(-1, *(1,) * (integers.ndim - 1))


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


# The form of the graph --------------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["fp32", "fp16"])
def half(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=list(NETWORKS))
def built(request: pytest.FixtureRequest) -> Network:
    return network(request.param)


@dataclass(frozen=True)
class Quantized:
    """A graph taken apart."""

    graph: onnx.GraphProto

    @property
    def constants(self) -> dict[str, NDArray[Any]]:
        return {init.name: numpy_helper.to_array(init) for init in self.graph.initializer}

    @property
    def makers(self) -> dict[str, onnx.NodeProto]:
        return {out: node for node in self.graph.node for out in node.output}

    def of_type(self, kind: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if node.op_type == kind]

    def convolutions(self) -> dict[str, onnx.NodeProto]:
        """By the name of their quantised weights."""
        makers = self.makers
        found = {}
        for node in self.of_type("Conv"):
            maker = makers.get(node.input[1])
            if maker is not None and maker.op_type == "DequantizeLinear":
                found[maker.input[0]] = node
        return found

    def quantizer(self, convolution: onnx.NodeProto) -> onnx.NodeProto:
        """Of its input."""
        makers = self.makers
        restore = makers[convolution.input[0]]
        assert restore.op_type == "DequantizeLinear"
        quantize = makers[restore.input[0]]
        assert quantize.op_type == "QuantizeLinear"
        assert list(quantize.input[1:]) == list(restore.input[1:])
        return quantize

    def widened(self, node: onnx.NodeProto) -> bool:
        """Whether a quantiser or dequantiser stands behind a cast to float32, as in front of a norm."""
        source = self.makers.get(node.input[0])
        if source is not None and source.op_type == "QuantizeLinear":
            source = self.makers.get(source.input[0])
        return source is not None and source.op_type == "Cast" and source.attribute[0].i == TensorProto.FLOAT


def weights_of(built: Network) -> list[str]:
    return [weight for layer in built.chosen.values() for weight in layer.weights]


def check_order(graph: onnx.GraphProto) -> None:
    known = {value.name for value in graph.input} | {init.name for init in graph.initializer} | {""}
    for node in graph.node:
        assert set(node.input) <= known, f"{node.name} reads what is not there yet"
        assert not set(node.output) & known
        known |= set(node.output)


def test_the_graph_is_a_valid_one(built: Network, half: bool) -> None:
    graph = built.int8(half)
    onnx.checker.check_model(graph, full_check=True)
    check_order(graph.graph)
    names = [node.name for node in graph.graph.node]
    assert len(names) == len(set(names))
    constants = [init.name for init in graph.graph.initializer]
    assert len(constants) == len(set(constants))
    # Nothing is carried along unread.
    assert {name for node in graph.graph.node for name in node.input} >= set(constants)


def test_chosen_convolutions_and_no_others_are_quantised(built: Network, half: bool) -> None:
    plain, graph = built.half if half else built.graph, Quantized(built.int8(half).graph)
    assert sorted(graph.convolutions()) == sorted(weights_of(built))
    changed = {node.output[0] for layer in built.chosen.values() for node in find(plain.graph, layer)}
    others = [
        node.SerializeToString()
        for node in plain.graph.node
        if node.output[0] not in changed and node.op_type not in MOVING
    ]
    kept = Counter(node.SerializeToString() for node in graph.graph.node)
    assert all(kept[node] >= 1 for node in others)
    counts = Counter(node.op_type for node in graph.graph.node)
    before = Counter(node.op_type for node in plain.graph.node)
    assert counts["DequantizeLinear"] == counts["QuantizeLinear"] + len(weights_of(built))
    assert counts - Counter({"DequantizeLinear": 10**6, "QuantizeLinear": 10**6}) == before


def test_types_of_weights_scales_and_zero_points(built: Network, half: bool) -> None:
    dtype = HALF if half else SINGLE
    graph = Quantized(built.int8(half).graph)
    constants = graph.constants
    for node in graph.of_type("QuantizeLinear") + graph.of_type("DequantizeLinear"):
        scale, zero = constants[node.input[1]], constants[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
        assert scale.dtype == (SINGLE if graph.widened(node) else dtype)
        assert scale.shape == zero.shape
        assert (scale > 0).all()
    for name, node in graph.convolutions().items():
        weight, restore = constants[name], graph.makers[node.input[1]]
        assert weight.dtype == np.int8
        assert constants[restore.input[1]].shape == weight.shape[:1]
        assert [(a.name, a.i) for a in restore.attribute] == [("axis", 0)]
        assert constants[graph.quantizer(node).input[1]].shape == ()
    # All that is not INT8 keeps its type.
    kept = {init.name: init.data_type for init in (built.half if half else built.graph).graph.initializer}
    for init in graph.graph.initializer:
        if init.name in kept and init.name not in weights_of(built):
            assert init.data_type == kept[init.name]
    stale = {v.name: v.type.tensor_type.elem_type for v in graph.graph.value_info if v.name in weights_of(built)}
    assert set(stale.values()) <= {TensorProto.INT8}


def test_scales_are_those_of_ranges_and_weights(built: Network, half: bool) -> None:
    dtype = HALF if half else SINGLE
    graph = Quantized(built.int8(half).graph)
    parameters = {name: value.numpy().astype(dtype) for name, value in built.model.net.named_parameters()}
    convolutions, constants = graph.convolutions(), graph.constants
    for layer in built.chosen.values():
        for name in layer.weights:
            integers, scale = quantize_weight(parameters[name])
            node = convolutions[name]
            assert np.array_equal(constants[name], integers)
            assert np.array_equal(constants[graph.makers[node.input[1]].input[1]], scale)
            assert constants[graph.quantizer(node).input[1]] == scale_of(built, layer, dtype)


def scale_of(built: Network, layer: Layer, dtype: np.dtype[np.floating]) -> Array:
    """Of the input of a layer: the next number for those that have a pair of their own."""
    scale = representable(built.ranges[layer.name].threshold / 127, dtype)
    return np.nextafter(scale, dtype.type(np.inf)) if layer.kind in ("depthwise", "transposed") else scale


def test_norms_read_int8_at_its_source(half: bool) -> None:
    """Behind the depthwise convolution itself; in an up block the parts of its output are rounded and then joined."""
    built = network("all, GRN")
    graph = Quantized(built.int8(half).graph)
    makers, norms = graph.makers, {node.name: node for node in graph.of_type("InstanceNormalization")}
    readers = Counter(name for node in graph.graph.node for name in node.input)
    for name in ("enc_block_0.0", "down_0", "bottleneck.0", "dec_block_0.0"):
        restore = makers[norms[f"{name}.norm"].input[0]]
        assert restore.op_type == "DequantizeLinear"
        source = makers[makers[restore.input[0]].input[0]]
        assert (makers[source.input[0]] if half else source).name == f"{name}.conv1"
    node = norms["up_0.norm"]
    for kind in (*(("Cast",) if half else ()), "Slice", "Slice", "Slice", "Reshape", "Transpose", "Reshape", "Concat"):
        node = makers[node.input[0]]
        if node.op_type == "DequantizeLinear":  # a cast is no movement: the quantiser stays behind it
            break
        assert node.op_type == kind
        assert readers[node.output[0]] == 1
    if half:
        assert node.op_type == "DequantizeLinear"
        return
    restores = [makers[name] for name in node.input]
    assert {restore.op_type for restore in restores} == {"DequantizeLinear"}
    parts = [makers[makers[restore.input[0]].input[0]].name for restore in restores]
    assert parts == [f"up_0.conv1.weight_{i}" for i in range(8)]
    expected = representable(built.ranges["up_0.norm"].threshold / 127, SINGLE)
    assert {float(graph.constants[restore.input[1]]) for restore in restores} == {float(expected)}


def test_the_graph_itself_is_not_touched(built: Network, half: bool) -> None:
    graph = built.half if half else built.graph
    before = graph.SerializeToString(deterministic=True)
    parameters = copy.deepcopy(built.model.net.state_dict())
    insert(graph, built.chosen, built.ranges, NVIDIA)
    assert graph.SerializeToString(deterministic=True) == before
    assert all(torch.equal(value, parameters[name]) for name, value in built.model.net.state_dict().items())


def test_layers_that_share_an_input_share_its_pair() -> None:
    """The parts of a transposed convolution read one tensor."""
    graph = Quantized(network("all, GRN").int8().graph)
    convolutions = graph.convolutions()
    assert len({convolutions[f"up_0.conv1.weight_{i}"].input[0] for i in range(8)}) == 1


def test_depthwise_convolutions_have_a_pair_of_their_own() -> None:
    """The down block's convolution and its residual read one tensor; equal scales would make one pair of theirs."""
    graph = Quantized(network("all, GRN").int8().graph)
    convolutions = graph.convolutions()
    own, dense = (graph.quantizer(convolutions[f"down_0.{name}.weight"]) for name in ("conv1", "res_conv"))
    assert own.input[0] == dense.input[0]
    assert graph.constants[own.input[1]] == np.nextafter(graph.constants[dense.input[1]], SINGLE.type(np.inf))


@pytest.mark.parametrize("levels", [63, 127])
def test_levels_of_weights(levels: int) -> None:
    built = network("pointwise")
    graph = Quantized(insert(built.graph, built.chosen, built.ranges, Flavour((), levels)).graph)
    for name in graph.convolutions():
        assert np.abs(graph.constants[name]).max() == levels


def test_layers_may_come_in_any_order() -> None:
    built = network("all, GRN")
    backwards = dict(reversed(built.ranges.items()))
    graph = insert(built.graph, built.chosen, backwards, NVIDIA)
    check_order(graph.graph)
    assert graph.SerializeToString(deterministic=True) == built.int8().SerializeToString(deterministic=True)


def test_one_input_in_two_ranges_has_two_pairs() -> None:
    built = network("all, GRN")
    other = replace(built.ranges["down_0.res_conv"], threshold=built.ranges["down_0.res_conv"].threshold / 2)
    model = insert(built.graph, built.chosen, {**built.ranges, "down_0.res_conv": other}, NVIDIA)
    onnx.checker.check_model(model, full_check=True)
    graph = Quantized(model.graph)
    one, two = (graph.quantizer(graph.convolutions()[f"down_0.{name}.weight"]) for name in ("conv1", "res_conv"))
    assert one.input[0] == two.input[0]
    assert graph.constants[two.input[1]] == pytest.approx(float(graph.constants[one.input[1]]) / 2, rel=1e-6)


def test_nothing_to_quantise_changes_nothing() -> None:
    built = network("pointwise")
    same, graph = insert(built.graph, built.chosen, {}, NVIDIA).graph, built.graph.graph
    assert list(same.node) == list(graph.node)
    assert list(same.initializer) == list(graph.initializer)


def test_weights_that_the_graph_does_not_have() -> None:
    built = network("pointwise")
    name = next(iter(built.ranges))
    renamed = replace(built.chosen[name], weights=("nowhere.weight",))
    with pytest.raises(ExportError, match=r"no layer with the weights nowhere\.weight; leave"):
        insert(built.graph, {name: renamed}, {name: built.ranges[name]}, NVIDIA)


def test_transposed_convolutions_are_refused() -> None:
    built = network("pointwise")
    layer = Layer("up_0.conv1", "transposed", nn.ConvTranspose3d(1, 1, 1), ("up_0.conv1.weight",))
    with pytest.raises(
        ExportError, match=r"no layer with the weights up_0\.conv1\.weight; leave layers of the kind transposed"
    ):
        insert(built.graph, {layer.name: layer}, {layer.name: next(iter(built.ranges.values()))}, NVIDIA)


# One convolution by hand ------------------------------------------------------------------------------------------


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


# What it computes -------------------------------------------------------------------------------------------------


def run(
    graph: onnx.ModelProto, image: NDArray[np.generic], names: list[str] | None = None
) -> list[NDArray[np.float32]]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    answers: list[NDArray[np.float32]] = session.run(names, {INPUT: image})
    return answers


class Rounding:
    """A forward pre-hook: the input as INT8 holds it."""

    def __init__(self, scale: Array) -> None:
        self.scale = float(scale)

    def __call__(self, module: nn.Module, args: tuple[Tensor]) -> Tensor:
        # As QuantizeLinear: half to even, saturated; in float32, in which values are on the same side of a half.
        levels = (args[0].float() / self.scale).round().clamp(-128, 127)
        return levels.double() * self.scale


def per_channel(weight: Tensor) -> Tensor:
    """The weights as INT8 holds them, in float64."""
    rows = weight.double().flatten(1)
    scale = (rows.abs().amax(1, keepdim=True) / 127).float().double()
    return ((rows / scale).round().clamp(-127, 127) * scale).view_as(weight)


def twin(built: Network) -> nn.Module:
    """The network in float64 with inputs, weights and biases of the chosen layers as INT8 holds them."""
    net = copy.deepcopy(built.model.net).double()
    modules = dict(net.named_modules())
    for name, found in built.ranges.items():
        module = modules[name]
        module.register_forward_pre_hook(Rounding(scale_of(built, built.chosen[name], SINGLE)))
        for parameter in module.parameters():
            if parameter.dim() == 1:
                continue
            rounded = per_channel(parameter)
            bias = None if isinstance(module, ParityConvTranspose) else module.bias
            if bias is not None and parameter[0, 0].numel() == 1 and parameter.shape[1] == len(found.mean):
                assert isinstance(bias, Tensor)
                bias += (parameter - rounded).flatten(1) @ found.mean.double()
            parameter.copy_(rounded)
    return net


def rms(values: NDArray[np.generic]) -> float:
    return float(np.sqrt(np.mean(np.asarray(values, dtype=np.float64) ** 2)))


def test_every_convolution_computes_what_its_twin_does(built: Network) -> None:
    """Layer by layer on ONNX Runtime's own inputs, to float32 accuracy."""
    model = built.int8()
    graph = Quantized(model.graph)
    convolutions = graph.convolutions()
    watched = {name: (graph.quantizer(node).input[0], node.output[0]) for name, node in convolutions.items()}
    parameters = {name: value.double() for name, value in twin(built).named_parameters()}
    few = replace(built.calibration, patches=built.calibration.patches[:1])
    names = sorted({name for pair in watched.values() for name in pair if name != INPUT})
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    (image,) = few.patches
    values = {INPUT: image, **dict(zip(names, run(model, image, names), strict=True))}
    for layer in built.chosen.values():
        for weight in layer.weights:
            source, result = watched[weight]
            node = convolutions[weight]
            rounding = Rounding(scale_of(built, layer, SINGLE))
            x = rounding(layer.module, (torch.from_numpy(values[source]),))
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            dims = x.dim() - 2
            pads = attributes.get("pads", [0] * 2 * dims)
            x = F.pad(x, [n for axis in reversed(range(dims)) for n in (pads[axis], pads[axis + dims])])
            convolve: Callable[..., Tensor] = {2: F.conv2d, 3: F.conv3d}[dims]
            expected = convolve(
                x,
                parameters[weight],
                parameters.get(weight.removesuffix("weight") + "bias"),
                stride=attributes.get("strides", 1),
                groups=attributes.get("group", 1),
            ).numpy()
            assert np.abs(values[result] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_network_computes_what_its_twin_does(built: Network) -> None:
    """To a hundredth of what INT8 costs: one value in many is rounded to the other side after float32 sums."""
    reference = twin(built)
    for image in built.calibration.patches:
        with torch.no_grad():
            expected = reference(torch.from_numpy(image).double()).numpy()
            exact = built.model.net(torch.from_numpy(image)).numpy()
        (found,) = run(built.int8(), image)
        assert rms(found - expected) <= 0.01 * rms(expected - exact)
        assert rms(expected - exact) < 0.1 * rms(exact)


def test_float16_graphs_answer_as_float32_ones_do(built: Network) -> None:
    """INT8 costs a float16 network about what it costs a float32 one."""
    image = built.calibration.patches[0]
    exact, single_, half = (run(graph, image)[0] for graph in (built.graph, built.int8(), built.int8(half=True)))
    assert half.dtype == np.float32
    assert np.isfinite(half).all()
    assert rms(half - exact) < 1.5 * rms(single_ - exact)


def test_other_thresholds_lose_more(built: Network) -> None:
    """Four times too high or too low."""
    image = built.calibration.patches[0]
    (exact,) = run(built.graph, image)
    costs = []
    for factor in (1, 4, 0.25):
        off = {name: replace(found, threshold=found.threshold * factor) for name, found in built.ranges.items()}
        costs.append(rms(run(insert(built.graph, built.chosen, off, NVIDIA), image)[0] - exact))
    assert costs[0] < min(costs[1:])


# TensorRT ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def rtx() -> Iterator[ModuleType]:
    try:
        yield PROVIDERS["tensorrt-rtx"].load()
    except TargetUnavailableError as error:
        pytest.skip(str(error))


def test_tensorrt_for_rtx_builds_it(rtx: ModuleType, built: Network, half: bool, tmp_path: Path) -> None:
    onnx.save(built.int8(half), tmp_path / "model.onnx")
    recipe = BuildRecipe(
        provider="tensorrt-rtx",
        input=INPUT,
        channels=built.config.in_channels,
        min=built.patch,
        opt=built.patch,
        max=built.patch,
    )
    build_plan(tmp_path / "model.onnx", recipe, tmp_path / "model.plan", arch="8.6")
    assert (tmp_path / "model.plan").stat().st_size > 10_000
