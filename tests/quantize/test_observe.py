"""Inner tensors of a graph, seen while it runs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mednext_edge.errors import ExportError
from mednext_edge.quantize.calibration import CalibrationSet
from mednext_edge.quantize.observe import observe


@pytest.fixture
def graph() -> onnx.ModelProto:
    """logits = -(2 x)^2, with both steps between as tensors."""
    body = helper.make_graph(
        [
            helper.make_node("Add", ["image", "image"], ["twice"]),
            helper.make_node("Mul", ["twice", "twice"], ["square"]),
            helper.make_node("Neg", ["square"], ["logits"]),
        ],
        "steps",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 2, 3, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2, 3, 4])],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def patches(count: int) -> CalibrationSet:
    rng = np.random.default_rng(0)
    return CalibrationSet(
        tuple(rng.standard_normal((1, 2, 3, 4)).astype(np.float32) for _ in range(count)), ("a",), "", 0
    )


def expected(image: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    answers: dict[str, NDArray[np.float32]] = {"twice": 2 * image, "square": 4 * image**2, "logits": -4 * image**2}
    return answers[name]


@pytest.mark.parametrize("names", [["square"], ["twice", "square"], ["logits"], ["square", "logits", "twice"]])
def test_every_tensor_of_every_patch(graph: onnx.ModelProto, names: list[str]) -> None:
    drawn = patches(3)
    found = list(observe(graph, names, drawn))
    assert len(found) == 3
    for values, image in zip(found, drawn.patches, strict=True):
        assert list(values) == names
        for name in names:
            assert values[name].dtype == np.float32
            assert values[name] == pytest.approx(expected(image, name), rel=1e-6)


def test_a_name_twice_is_one(graph: onnx.ModelProto) -> None:
    (values,) = observe(graph, ["square", "twice", "square"], patches(1))
    assert list(values) == ["square", "twice"]


def test_the_graph_stays_as_it_is(graph: onnx.ModelProto) -> None:
    before = graph.SerializeToString(deterministic=True)
    list(observe(graph, ["square", "twice"], patches(1)))
    assert graph.SerializeToString(deterministic=True) == before


def test_patches_are_taken_one_by_one(graph: onnx.ModelProto) -> None:
    """All tensors of one patch may fill the memory; those of two need not be in it together."""
    told: list[tuple[int, int]] = []
    stream = observe(graph, ["square"], patches(4), lambda *now: told.append(now))
    next(stream)
    assert told == []
    next(stream)
    assert told == [(1, 4)]
    assert len(list(stream)) == 2
    assert told == [(i, 4) for i in range(1, 5)]


def test_a_tensor_that_the_graph_does_not_have(graph: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match=r"ONNX Runtime cannot load the float graph to observe it: .*nowhere"):
        next(observe(graph, ["nowhere"], patches(1)))


def test_an_operator_that_is_not_known(graph: onnx.ModelProto) -> None:
    graph.graph.node[1].op_type = "Wobble"
    with pytest.raises(ExportError, match=r"ONNX Runtime cannot load the float graph to observe it: .*Wobble"):
        next(observe(graph, ["twice"], patches(1)))


def test_a_float16_graph_is_seen_in_float32() -> None:
    """What would be infinite in float16 has its true size; weights are those that float16 holds."""
    weight = np.float16([60000.0, 0.1])
    body = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Constant", [], ["ten"], value=numpy_helper.from_array(np.float16(10))),
            helper.make_node("Mul", ["half", "weight"], ["scaled"]),
            helper.make_node("Mul", ["scaled", "ten"], ["large"]),
            helper.make_node("Cast", ["large"], ["logits"], to=TensorProto.FLOAT),
        ],
        "half",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(weight, "weight")],
        value_info=[helper.make_tensor_value_info("large", TensorProto.FLOAT16, [1, 2])],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    before = model.SerializeToString(deterministic=True)
    image = np.float32([[7.0, 1 / 3]])
    (values,) = observe(model, ["scaled", "large"], CalibrationSet((image,), (), "", 0))
    assert values["scaled"] == pytest.approx(image * weight.astype(np.float32))
    assert values["large"] == pytest.approx(10 * image * weight.astype(np.float32))
    assert model.SerializeToString(deterministic=True) == before
