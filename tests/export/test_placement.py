"""The precision of a graph's convolutions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mednext_edge.export.placement import placement


def constant(name: str, kind: type, *shape: int) -> onnx.TensorProto:
    tensor: onnx.TensorProto = numpy_helper.from_array(np.ones(shape, kind), name)
    return tensor


def write(file: Path) -> Path:
    """One convolution of every sort; `half way` has integer weights alone."""
    nodes = [
        helper.make_node("Conv", ["x", "deep"], ["a"], name="exact depthwise", group=2),
        helper.make_node("Conv", ["x16", "deep16"], ["b"], name="half depthwise", group=2),
        helper.make_node("Conv", ["x16", "wide16"], ["c"], name="half pointwise"),
        helper.make_node("ConvTranspose", ["x16", "wide16"], ["d"], name="half transposed"),
        helper.make_node("QuantizeLinear", ["x16", "scale"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["dq"]),
        helper.make_node("DequantizeLinear", ["wide8", "scale"], ["wide8_dq"]),
        helper.make_node("Conv", ["dq", "wide8_dq"], ["e"], name="integer"),
        helper.make_node("Conv", ["x16", "wide8_dq", "bias16"], ["f"], name="half way"),
        helper.make_node("Relu", ["x"], ["g"], name="no convolution"),
    ]
    weights = [
        constant("deep", np.float32, 2, 1, 3, 3, 3),
        constant("deep16", np.float16, 2, 1, 3, 3, 3),
        constant("wide16", np.float16, 2, 2, 1, 1, 1),
        constant("wide8", np.int8, 2, 2, 1, 1, 1),
        constant("bias16", np.float16, 2),
        constant("scale", np.float16),
    ]
    values = [
        helper.make_tensor_value_info(name, kind, [1, 2, 4, 4, 4])
        for name, kind in (("x", onnx.TensorProto.FLOAT), ("x16", onnx.TensorProto.FLOAT16))
    ]
    onnx.save(helper.make_model(helper.make_graph(nodes, "sorts", values, [], weights)), file)
    return file


def test_every_convolution_is_counted_and_the_others_named(tmp_path: Path) -> None:
    layers = placement(write(tmp_path / "model.onnx"), "int8")
    assert layers.counts_by_precision == {"fp32": 1, "fp16": 4, "int8": 1}
    assert layers.reformats is None
    reasons = {f.name: (f.got, f.reason.split(":")[0]) for f in layers.fallbacks}
    assert reasons == {
        "exact depthwise": ("fp32", "a depthwise convolution"),
        "half depthwise": ("fp16", "a depthwise convolution"),
        "half pointwise": ("fp16", "a convolution of little work"),
        "half transposed": ("fp16", "a transposed convolution"),
        "half way": ("fp16", "a convolution of little work"),
    }
    assert {f.asked for f in layers.fallbacks} == {"int8"}


def test_what_was_asked_for_is_no_fallback(tmp_path: Path) -> None:
    layers = placement(write(tmp_path / "model.onnx"), "fp16")
    assert [f.name for f in layers.fallbacks] == ["exact depthwise", "integer"]


def test_weights_beside_the_graph_are_not_read(tmp_path: Path) -> None:
    file = write(tmp_path / "model.onnx")
    onnx.save(onnx.load(file), file, save_as_external_data=True, location="weights", size_threshold=0)
    (tmp_path / "weights").unlink()
    assert placement(file, "fp16").counts_by_precision == {"fp32": 1, "fp16": 4, "int8": 1}
