"""INT8 in an ONNX graph: what becomes of its form."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from mednext_edge.errors import ExportError
from mednext_edge.quantize.flavour import NVIDIA, Flavour
from mednext_edge.quantize.kinds import Layer, find
from mednext_edge.quantize.qdq import MOVING, insert, quantize_weight, representable
from tests.quantize.graphs import HALF, SINGLE, Quantized, scale_of
from tests.quantize.networks import Network, network


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
