"""INT8 written into an ONNX graph: Q/DQ pairs, symmetric and signed, as every engine here takes them.

Weights become INT8 constants with one scale an output channel and a DequantizeLinear; activations get a pair of
QuantizeLinear and DequantizeLinear with one scale. Everything else stays as it is, float16 graphs float16.
(ONNX operator set 19 and newer; "Explicit Quantization" in NVIDIA's TensorRT documentation. OpenVINO reads the pairs
as FakeQuantize.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from mednext_edge.errors import ExportError
from mednext_edge.quantize.flavour import LEVELS, Flavour
from mednext_edge.quantize.kinds import Layer, find
from mednext_edge.quantize.ranges import ActivationRange

Array = NDArray[np.floating]

# Operators that only move numbers, all of them from the first input but for Concat.
MOVING = frozenset({"Concat", "DepthToSpace", "Reshape", "Slice", "Transpose"})


def insert(
    graph: onnx.ModelProto,
    layers: Mapping[str, Layer],
    ranges: Mapping[str, ActivationRange],
    flavour: Flavour,
) -> onnx.ModelProto:
    """The graph with INT8 layers; the graph itself is not touched.

    Args:
        graph: of a network in deploy form, as `export.graph.to_onnx` names its weights and nodes.
        layers: by name, at least those in `ranges`.
        ranges: of the inputs of the layers to quantise.
        flavour: of the engine; how it wants weights.

    Raises:
        ExportError: the graph lacks one of the layers, or several layers share its weights.
    """
    result = onnx.ModelProto()
    result.CopyFrom(graph)
    writer = _Writer(result.graph, flavour)
    for name, seen in ranges.items():
        writer.want(layers[name], seen)
    writer.write()
    return result


class _Writer:
    def __init__(self, graph: onnx.GraphProto, flavour: Flavour) -> None:
        self.graph = graph
        self.flavour = flavour
        self.constants = {init.name: init for init in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}
        self.readers = Counter(name for node in graph.node for name in node.input)
        self.readers.update(output.name for output in graph.output)
        self.types = _types(graph)
        self.convolutions: dict[str, ActivationRange] = {}
        """Of the nodes to quantise, by the name of their weights."""
        self.thresholds: dict[tuple[str, str], float] = {}
        """Of tensors to be replaced, by their name and the first output of the node that reads them."""
        self.pairs: dict[tuple[str, float, bool], str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def want(self, layer: Layer, seen: ActivationRange) -> None:
        """Note a layer to quantise."""
        for node in find(self.graph, layer):
            if layer.weights:
                weight = node.input[1]
                if self.readers[weight] > 1:
                    raise ExportError(
                        f"the graph uses the weights {weight} of layer {layer.name} in {self.readers[weight]} places, "
                        "which have equal ones; leave layers of this kind in float"
                    )
                self.convolutions[weight] = seen
            self._want_input(node, 0, seen.threshold)

    def _want_input(self, node: onnx.NodeProto, index: int, threshold: float) -> None:
        """Note an input to quantise: where it only comes from moving data, at the sources of the movement.

        Rounding commutes with moving; quantised at the source, the same numbers travel in a quarter of the bytes.
        """
        tensor = node.input[index]
        mover = self.producers.get(tensor)
        if mover is None or mover.op_type not in MOVING or self.readers[tensor] > 1:
            self.thresholds[tensor, node.output[0]] = threshold
            return
        for i in range(len(mover.input) if mover.op_type == "Concat" else 1):
            self._want_input(mover, i, threshold)

    def write(self) -> None:
        """Quantise what was noted, in the graph's own order, so that it stays topological."""
        for node in self.graph.node:
            seen = self.convolutions.get(node.input[1]) if node.op_type == "Conv" else None
            if seen is not None:
                self._quantize_weights(node, seen)
            for i, tensor in enumerate(node.input):
                threshold = self.thresholds.get((tensor, node.output[0]))
                if threshold is not None:
                    node.input[i] = self._activation(tensor, threshold, grouped(node))
            self.nodes.append(node)
        # What was inferred for constants that have another type now.
        kept = [value for value in self.graph.value_info if value.name not in self.constants]
        for field, content in ((self.graph.node, self.nodes), (self.graph.value_info, kept)):
            del field[:]
            field.extend(content)

    def _quantize_weights(self, node: onnx.NodeProto, seen: ActivationRange) -> None:
        weight = node.input[1]
        values = numpy_helper.to_array(self.constants[weight])
        integers, scale = quantize_weight(values, self.flavour.weight_levels)
        if self.flavour.even_depthwise and integers.shape[1] == 1 and grouped(node):
            integers, scale = 2 * integers, scale / 2
        self._correct_bias(node, values, integers, scale, seen)
        self.constants[weight].CopyFrom(numpy_helper.from_array(integers, weight))
        node.input[1] = self._dequantized(weight, scale)

    def _activation(self, source: str, threshold: float, apart: bool) -> str:
        """A tensor quantised and dequantised; layers that share input and threshold share the pair.

        Those with `apart` have one of their own: OpenVINO makes a pair that dense convolutions read unsigned, and
        computes a depthwise convolution of unsigned numbers in FP32. It also merges equal pairs, so that the scale is
        the next number.
        """
        key = (source, threshold, apart)
        if key not in self.pairs:
            stem = f"{source}_int8_{sum(name == source for name, *_ in self.pairs)}"
            value = representable(threshold / LEVELS, self.types[source])
            scale = self._constant(f"{stem}_scale", np.asarray(np.nextafter(value, np.inf) if apart else value))
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
        if seen.mean is None or any(n != 1 for n in values.shape[2:]) or values.shape[1] != len(seen.mean):
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


def grouped(node: onnx.NodeProto) -> bool:
    """Whether a node is a convolution in groups, such as a depthwise one."""
    return node.op_type == "Conv" and any(a.name == "group" and a.i > 1 for a in node.attribute)


def _types(graph: onnx.GraphProto) -> dict[str, np.dtype[np.floating]]:
    """The float types of a graph's tensors."""
    inferred = onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph)).graph
    kinds: dict[int, np.dtype[np.floating]] = {
        onnx.TensorProto.FLOAT: np.dtype(np.float32),
        onnx.TensorProto.FLOAT16: np.dtype(np.float16),
    }
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {v.name: kinds[t] for v in values if (t := v.type.tensor_type.elem_type) in kinds}


def quantize_weight(weight: Array, levels: int = LEVELS) -> tuple[NDArray[np.int8], Array]:
    """Symmetric INT8 of a convolution's weights.

    Args:
        weight: [out, in, *kernel], float16 or float32.
        levels: largest integer, 127 or less.

    Returns:
        The integers, -levels..levels, and the scales [out] in the weights' own type. The integers belong to the scales
        as that type holds them.
    """
    peak = np.abs(weight.reshape(len(weight), -1).astype(np.float64)).max(axis=1)
    scale = representable(np.where(peak > 0, peak, 1.0) / levels, weight.dtype)
    shape = (-1,) + (1,) * (weight.ndim - 1)
    integers = np.rint(weight.astype(np.float64) / scale.astype(np.float64).reshape(shape))
    return np.clip(integers, -levels, levels).astype(np.int8), scale


def representable(scale: float | NDArray[np.float64], dtype: np.dtype[np.floating]) -> Array:
    """Scales in a float type, at least its smallest normal number: below, float16 keeps few digits and then none."""
    value: Array = np.maximum(np.asarray(scale, dtype=np.float64), float(np.finfo(dtype).smallest_normal)).astype(dtype)
    return value
