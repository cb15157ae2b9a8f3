"""Convolutions in parts: the same numbers, in float and INT8, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from mednext_edge.export.graph import to_onnx
from mednext_edge.export.openvino_model import to_openvino
from mednext_edge.export.parts import part_convolutions
from mednext_edge.runtime.openvino_session import OpenVinoSession
from tests.export.conftest import single
from tests.fusion.networks import SMALL_2D, loaded

SIZES = (1, 5, 6)
CHANNELS = 4


def constant(name: str, *shape: int, kind: str = "float32") -> onnx.TensorProto:
    rng = np.random.default_rng(len(name) + sum(shape))
    values = rng.integers(-127, 128, shape) if kind == "int8" else rng.uniform(0.5, 1.5, shape)
    return numpy_helper.from_array(np.asarray(values, kind), name)


def graph(
    *, int8: bool = False, axis: int = 1, group: int = 1, bias: bool = True, read_twice: bool = False
) -> onnx.ModelProto:
    """A 1x1 convolution, and its result in parts."""
    out = sum(SIZES)
    constants = [constant("b", out), numpy_helper.from_array(np.array(SIZES, np.int64), "sizes")]
    nodes, weight = [], "w"
    if int8:
        constants += [constant("w_q", out, CHANNELS // group, 1, 1, kind="int8"), constant("s", out)]
        constants.append(numpy_helper.from_array(np.zeros(out, np.int8), "z"))
        nodes.append(helper.make_node("DequantizeLinear", ["w_q", "s", "z"], ["w"], "w_dequantize", axis=0))
    else:
        constants.append(constant("w", out, CHANNELS // group, 1, 1))
    nodes += [
        helper.make_node("Conv", ["x", weight, *(["b"] if bias else [])], ["y"], "layer", group=group),
        helper.make_node("Split", ["y", "sizes"], ["p0", "p1", "p2"], "split", axis=axis),
    ]
    names = ["p0", "p1", "p2", *(["y"] if read_twice else [])]
    shape = [1, CHANNELS, out, out]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in names],
            constants,
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def run(model: onnx.ModelProto) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    onnx.checker.check_model(model, full_check=True)
    x = np.random.default_rng(0).standard_normal((1, CHANNELS, sum(SIZES), sum(SIZES)), np.float32)
    return list(onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x}))


def kinds(model: onnx.ModelProto) -> list[str]:
    return sorted(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("int8", [True, False])
def test_same_numbers(int8: bool, bias: bool) -> None:
    before = graph(int8=int8, bias=bias)
    found, parts = part_convolutions(before)
    assert kinds(found) == ["Conv"] * 3 + ["DequantizeLinear"] * 3 * int8
    assert parts == {"layer": ["layer.0", "layer.1", "layer.2"]}
    assert "Split" in kinds(before)
    weights = [init for init in found.graph.initializer if len(init.dims) == 4]
    assert sum(init.dims[0] for init in weights) == sum(SIZES)  # nothing is kept twice
    for ours, theirs in zip(run(found), run(before), strict=True):
        # Another shape of product may add in another order.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("change", [{"axis": 2}, {"axis": -1}, {"group": 2}, {"read_twice": True}])
def test_what_cannot_be_cut_stays(change: dict[str, int]) -> None:
    before = graph(**change)  # type: ignore[arg-type]
    found, parts = part_convolutions(before)
    assert found == before
    assert not parts


def test_weights_that_are_computed_stay() -> None:
    before = graph()
    before.graph.node.insert(0, helper.make_node("Neg", ["w"], ["negative"], "negate"))
    before.graph.node[1].input[1] = "negative"
    assert part_convolutions(before)[0] == before


def test_the_attention_of_the_2d_mednext_has_no_split_in_openvino() -> None:
    model = single(loaded(SMALL_2D))
    size = (64, 64)
    ours, parts = to_openvino(to_onnx(model, size))
    assert parts
    assert not [node for node in ours.get_ordered_ops() if node.get_type_name().endswith("Split")]
    x = torch.randn(1, model.task.model.in_channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected: Tensor = model.net(x)
    found = OpenVinoSession(ours, model.task, "fp32", patch=size).run(x.numpy())
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)
