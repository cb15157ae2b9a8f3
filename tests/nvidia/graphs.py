"""Networks of two layers for builders: a depthwise 3-D convolution and an activation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUT, SIZE = "image", 8


def write(file: Path, *, half: bool = False, size_open: bool = False, activation: str = "Relu") -> Path:
    """Write a graph that takes [1, 2, z, y, x].

    Args:
        file: where to.
        half: weights and tensors in float16.
        size_open: any z, y and x, instead of 8.
        activation: the operator behind the convolution; its node is called `act`, the convolution's `stem`.
    """
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    shape = [1, 2, *(("z", "y", "x") if size_open else (SIZE,) * 3)]
    weight = np.random.default_rng(0).standard_normal((2, 1, 3, 3, 3)).astype(np.float16 if half else np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", [INPUT, "weight"], ["mixed"], name="stem", pads=[1] * 6, group=2),
            helper.make_node(activation, ["mixed"], ["logits"], name="act"),
        ],
        "tiny",
        [helper.make_tensor_value_info(INPUT, kind, shape)],
        [helper.make_tensor_value_info("logits", kind, shape)],
        [numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), file)
    return file
