"""What inner tensors of a graph hold, seen while it runs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mednext_edge.errors import ExportError
from mednext_edge.evaluation.memory import PeakMemory
from mednext_edge.quantize.calibration import CalibrationSet
from mednext_edge.quantize.observe import SAMPLED, observe


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
    found = list(observe(graph, drawn, samples=names))
    assert len(found) == 3
    for values, image in zip(found, drawn.patches, strict=True):
        assert list(values) == names
        for name in names:
            held, seen = expected(image, name), values[name]
            assert (seen.low, seen.high) == pytest.approx((held.min(), held.max()), rel=1e-6)
            assert seen.peak == pytest.approx(np.abs(held).max(), rel=1e-6)
            assert seen.mean == pytest.approx(held.mean(axis=(0, 2, 3)), rel=1e-5, abs=1e-6)
            assert seen.sample == pytest.approx(held.ravel(), rel=1e-6)


def test_extremes_alone(graph: onnx.ModelProto) -> None:
    drawn = patches(1)
    (values,) = observe(graph, drawn, extremes=["twice", "square"], samples=["square"])
    assert values["twice"].mean is values["twice"].sample is None
    assert values["twice"].low == pytest.approx(expected(drawn.patches[0], "twice").min())
    assert values["square"].sample is not None


@pytest.mark.parametrize("shape", [(1, 3, 5), (1, 1, 2, 2, 2), (1, 4, 63, 65, 67), (1, 2, 700, 900)])
def test_a_sample_is_even_and_of_bounded_size(shape: tuple[int, ...]) -> None:
    body = helper.make_graph(
        [helper.make_node("Neg", ["image"], ["logits"])],
        "one step",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [None] * len(shape))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None] * len(shape))],
    )
    graph = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    (values,) = observe(graph, CalibrationSet((image,), (), "", 0), samples=["logits"])
    seen = values["logits"]
    step = image.size // SAMPLED | 1
    assert seen.sample is not None
    assert len(seen.sample) < 2 * SAMPLED
    assert np.array_equal(seen.sample, -image.ravel()[::step])
    assert seen.mean == pytest.approx(-image.reshape(shape[1], -1).mean(axis=1, dtype=np.float64), abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_an_infinite_peak(graph: onnx.ModelProto, bad: float) -> None:
    image = patches(1).patches[0].copy()
    image[0, 1, 2, 3] = bad
    (values,) = observe(graph, CalibrationSet((image,), (), "", 0), samples=["twice"])
    assert values["twice"].peak == np.inf


def test_a_name_twice_is_one(graph: onnx.ModelProto) -> None:
    (values,) = observe(graph, patches(1), extremes=["square", "twice", "square"])
    assert list(values) == ["square", "twice"]


def test_the_graph_stays_as_it_is(graph: onnx.ModelProto) -> None:
    before = graph.SerializeToString(deterministic=True)
    list(observe(graph, patches(1), samples=["square", "twice"]))
    assert graph.SerializeToString(deterministic=True) == before


def test_patches_are_taken_one_by_one(graph: onnx.ModelProto) -> None:
    told: list[tuple[int, int]] = []
    stream = observe(graph, patches(4), extremes=["square"], progress=lambda *now: told.append(now))
    next(stream)
    assert told == []
    next(stream)
    assert told == [(1, 4)]
    assert len(list(stream)) == 2
    assert told == [(i, 4) for i in range(1, 5)]


def grown(backwards: bool) -> float:
    """By how many of its tensors the process grows while 12, one after the other, are watched.

    They are large enough for glibc to give each back to the system as soon as it is freed.
    """
    shape, count = (1, 4, 96, 160, 160), 12
    steps = [f"step {i}" for i in range(count)]
    body = helper.make_graph(
        [helper.make_node("Add", [a, "image"], [b]) for a, b in zip(["image", *steps], steps, strict=False)],
        "chain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(steps[-1], TensorProto.FLOAT, shape)],
    )
    graph = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    image = np.ones(shape, np.float32)
    names = steps[::-1] if backwards else steps
    with PeakMemory() as before:
        pass
    with PeakMemory() as memory:
        (values,) = observe(graph, CalibrationSet((image,), (), "", 0), samples=names)
    assert [values[name].high for name in steps] == list(range(2, count + 2))
    return (memory.mb - before.mb) * 1e6 / image.nbytes


@pytest.mark.parametrize("backwards", [False, True])
def test_no_tensor_waits_for_its_statistics(backwards: bool) -> None:
    """A few are alive at once, not all 12. In a process of its own: the heap of this one has holes of earlier tests."""
    code = f"from tests.quantize import test_observe as t; print(t.grown({backwards}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 6


def test_a_tensor_that_the_graph_does_not_have(graph: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match=r"ONNX Runtime cannot load the graph to observe it: .*nowhere"):
        next(observe(graph, patches(1), extremes=["nowhere"]))


def test_an_operator_that_is_not_known(graph: onnx.ModelProto) -> None:
    graph.graph.node[1].op_type = "Wobble"
    with pytest.raises(ExportError, match=r"ONNX Runtime cannot load the graph to observe it: .*Wobble"):
        next(observe(graph, patches(1), extremes=["twice"]))


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
    (values,) = observe(model, CalibrationSet((image,), (), "", 0), samples=["scaled", "large"])
    assert values["scaled"].sample == pytest.approx((image * weight.astype(np.float32)).ravel())
    assert values["large"].sample == pytest.approx((10 * image * weight.astype(np.float32)).ravel())
    assert values["large"].high == pytest.approx(4.2e6)
    assert model.SerializeToString(deterministic=True) == before
