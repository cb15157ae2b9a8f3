"""INT8 written into an ONNX graph: Q/DQ pairs, symmetric and signed, as TensorRT takes them.

Weights become INT8 constants with one scale an output channel and a DequantizeLinear; activations get a pair of
QuantizeLinear and DequantizeLinear with one scale. Everything else stays as it is, float16 graphs float16.
(ONNX operator set 19 and newer; "Explicit Quantization" in NVIDIA's TensorRT documentation.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from mednext_edge.errors import ExportError
from mednext_edge.quantize.kinds import Layer
from mednext_edge.quantize.ranges import LEVELS, ActivationRange

Array = NDArray[np.floating]


def insert(
    graph: onnx.ModelProto, layers: Mapping[str, Layer], ranges: Mapping[str, ActivationRange]
) -> onnx.ModelProto:
    """The graph with INT8 convolutions; the graph itself is not touched.

    Args:
        graph: of a network in deploy form, whose weights have the names of the parameters.
        layers: by name, at least those in `ranges`.
        ranges: of the inputs of the layers to quantise.

    Raises:
        ExportError: the graph has no convolution with the weights of one of the layers, or several share them.
    """
    result = onnx.ModelProto()
    result.CopyFrom(graph)
    writer = _Writer(result.graph)
    for name, seen in ranges.items():
        for weight in layers[name].weights:
            writer.want(name, weight, seen)
    writer.write()
    return result


class _Writer:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = {init.name: init for init in graph.initializer}
        self.readers = Counter(name for node in graph.node for name in node.input)
        self.convolved = {node.input[1] for node in graph.node if node.op_type == "Conv"}
        self.wanted: dict[str, ActivationRange] = {}
        self.pairs: dict[tuple[str, float], str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def want(self, layer: str, weight: str, seen: ActivationRange) -> None:
        """Note a convolution to quantise, by its weights."""
        if weight not in self.convolved or weight not in self.constants:
            raise ExportError(
                f"the graph has no convolution with the weights {weight} of layer {layer}; leave layers of this kind "
                "in float, or export with the torch version in constraints.txt"
            )
        if self.readers[weight] > 1:
            raise ExportError(
                f"the graph uses the weights {weight} of layer {layer} in {self.readers[weight]} places, which have "
                "equal ones; leave layers of this kind in float"
            )
        self.wanted[weight] = seen

    def write(self) -> None:
        """Quantise what was noted, in the graph's own order, so that it stays topological."""
        for node in self.graph.node:
            if node.op_type == "Conv" and node.input[1] in self.wanted:
                self._quantize(node, self.wanted[node.input[1]])
            self.nodes.append(node)
        # What was inferred for constants that have another type now.
        kept = [value for value in self.graph.value_info if value.name not in self.constants]
        for field, content in ((self.graph.node, self.nodes), (self.graph.value_info, kept)):
            del field[:]
            field.extend(content)

    def _quantize(self, node: onnx.NodeProto, seen: ActivationRange) -> None:
        weight = node.input[1]
        values = numpy_helper.to_array(self.constants[weight])
        integers, scale = quantize_weight(values)
        self._correct_bias(node, values, integers, scale, seen)
        self.constants[weight].CopyFrom(numpy_helper.from_array(integers, weight))
        node.input[0] = self._activation(node.input[0], seen.threshold, values.dtype)
        node.input[1] = self._dequantized(weight, scale)

    def _activation(self, source: str, threshold: float, dtype: np.dtype[np.floating]) -> str:
        """A tensor quantised and dequantised; layers that share input and threshold share the pair."""
        key = (source, threshold)
        if key not in self.pairs:
            stem = f"{source}_int8_{sum(name == source for name, _ in self.pairs)}"
            scale = self._constant(f"{stem}_scale", np.asarray(representable(threshold / LEVELS, dtype)))
            zero = self._constant(f"{stem}_zero", np.asarray(0, np.int8))
            quantize = onnx.helper.make_node("QuantizeLinear", [source, scale, zero], [f"{stem}_q"], f"{stem}_quantize")
            restore = onnx.helper.make_node(
                "DequantizeLinear", [f"{stem}_q", scale, zero], [f"{stem}_dq"], f"{stem}_dequantize"
            )
            self.nodes += [quantize, restore]
            self.pairs[key] = f"{stem}_dq"
        return self.pairs[key]

    def _dequantized(self, weight: str, scale: Array) -> str:
        zeros = self._constant(f"{weight}_zero", np.zeros(scale.shape, np.int8))
        inputs = [weight, self._constant(f"{weight}_scale", scale), zeros]
        restore = onnx.helper.make_node("DequantizeLinear", inputs, [f"{weight}_dq"], f"{weight}_dequantize", axis=0)
        self.nodes.append(restore)
        return f"{weight}_dq"

    def _correct_bias(
        self, node: onnx.NodeProto, values: Array, integers: NDArray[np.int8], scale: Array, seen: ActivationRange
    ) -> None:
        """Give back what the rounding of the weights takes from the mean of each output channel.

        Exact for 1x1x1 convolutions; with a larger kernel the padding would have to be known, and is left out.
        """
        if any(n != 1 for n in values.shape[2:]) or values.shape[1] != len(seen.mean):
            return
        shape = (-1,) + (1,) * (values.ndim - 1)
        lost = values.astype(np.float64) - integers * scale.astype(np.float64).reshape(shape)
        shift = lost.reshape(lost.shape[:2]) @ seen.mean.double().numpy()
        if len(node.input) < 3:
            node.input.append(self._constant(f"{node.input[1]}_bias", shift.astype(values.dtype)))
            return
        bias = self.constants[node.input[2]]
        corrected = (numpy_helper.to_array(bias) + shift).astype(values.dtype)
        if self.readers[bias.name] == 1:
            bias.CopyFrom(numpy_helper.from_array(corrected, bias.name))
        else:  # equal biases of several layers are one constant to the exporter
            node.input[2] = self._constant(f"{node.input[1]}_bias", corrected)

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name


def quantize_weight(weight: Array) -> tuple[NDArray[np.int8], Array]:
    """Symmetric INT8 of a convolution's weights.

    Args:
        weight: [out, in, *kernel], float16 or float32.

    Returns:
        The integers, -127..127, and the scales [out] in the weights' own type. The integers belong to the scales as
        that type holds them.
    """
    peak = np.abs(weight.reshape(len(weight), -1).astype(np.float64)).max(axis=1)
    scale = representable(np.where(peak > 0, peak, 1.0) / LEVELS, weight.dtype)
    shape = (-1,) + (1,) * (weight.ndim - 1)
    integers = np.rint(weight.astype(np.float64) / scale.astype(np.float64).reshape(shape))
    return np.clip(integers, -LEVELS, LEVELS).astype(np.int8), scale


def representable(scale: float | NDArray[np.float64], dtype: np.dtype[np.floating]) -> Array:
    """Scales in a float type, at least its smallest normal number: below, float16 keeps few digits and then none."""
    value: Array = np.maximum(np.asarray(scale, dtype=np.float64), float(np.finfo(dtype).smallest_normal)).astype(dtype)
    return value
