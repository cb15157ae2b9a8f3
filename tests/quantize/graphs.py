"""INT8 graphs taken apart and run, for the tests of what is put into them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from mednext_edge.export.graph import INPUT
from mednext_edge.quantize.kinds import Layer
from mednext_edge.quantize.qdq import representable
from tests.quantize.networks import Network

Array = NDArray[np.floating]
HALF, SINGLE = np.dtype(np.float16), np.dtype(np.float32)


def restored(integers: NDArray[np.int8], scale: Array) -> NDArray[np.float64]:
    return integers * scale.astype(np.float64).reshape(-1, *(1,) * (integers.ndim - 1))


def run(
    graph: onnx.ModelProto, image: NDArray[np.generic], names: list[str] | None = None
) -> list[NDArray[np.float32]]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    answers: list[NDArray[np.float32]] = session.run(names, {INPUT: image})
    return answers


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


def scale_of(built: Network, layer: Layer, dtype: np.dtype[np.floating]) -> Array:
    """Of the input of a layer: the next number for those that have a pair of their own."""
    scale = representable(built.ranges[layer.name].threshold / 127, dtype)
    return np.nextafter(scale, dtype.type(np.inf)) if layer.kind in ("depthwise", "transposed") else scale
