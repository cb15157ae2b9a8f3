"""A convolution whose result is cut into parts along its channels, as one convolution for each part.

OpenVINO's CPU plugin cuts with its reference code where parts are no multiples of its blocks, such as one channel and
two times C: that takes a sixth of a tiny 2-D MedNeXt, whose attention begins so. Every output channel keeps its
weights, so that the numbers stay what they are.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper


def part_convolutions(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, list[str]]]:
    """The graph with such convolutions in parts; the graph itself is not touched.

    Args:
        graph: its weights are constants, in float or dequantised of INT8 by channel.

    Returns:
        The graph, and the names of the parts by the name of the convolution that they stand for.
    """
    result = onnx.ModelProto()
    result.CopyFrom(graph)
    writer = _Writer(result.graph)
    for node in graph.graph.node:
        if node.op_type == "Split":
            writer.part(node)
    writer.write()
    return result, writer.parts


class _Writer:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = {init.name: init for init in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers = Counter(name for node in graph.node for name in node.input)
        self.readers.update(value.name for value in graph.output)
        self.parts: dict[str, list[str]] = {}
        self.replaced: dict[str, list[onnx.NodeProto]] = {}  # by the first output of what they replace

    def part(self, split: onnx.NodeProto) -> None:
        """Note the parts of the convolution in front of a Split, if it has one that can be cut."""
        conv, sizes = self.makers.get(split.input[0]), self._sizes(split)
        if conv is None or sizes is None or not self._can_be_cut(conv):
            return
        made: list[onnx.NodeProto] = []
        self.parts[conv.name] = [f"{conv.name}.{i}" for i in range(len(sizes))]
        for i, (name, where) in enumerate(zip(self.parts[conv.name], sizes, strict=True)):
            inputs = [conv.input[0], *(self._cut(source, i, where, made) for source in conv.input[1:])]
            new = onnx.NodeProto()
            new.CopyFrom(conv)
            new.name = name
            del new.input[:], new.output[:]
            new.input.extend(inputs)
            new.output.append(split.output[i])
            made.append(new)
        self.replaced[conv.output[0]] = made
        self.replaced[split.output[0]] = []

    def write(self) -> None:
        """Put the parts where the convolutions were, and drop the constants that nothing reads any more."""
        nodes = [new for node in self.graph.node for new in self.replaced.get((*node.output, "")[0], [node])]
        read = {name for node in nodes for name in node.input} | {value.name for value in self.graph.output}
        nodes = [node for node in nodes if node.op_type != "DequantizeLinear" or node.output[0] in read]
        read = {name for node in nodes for name in node.input} | {value.name for value in self.graph.output}
        kept = [init for name, init in self.constants.items() if name in read]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(kept)

    def _can_be_cut(self, conv: onnx.NodeProto) -> bool:
        alone = conv.op_type == "Conv" and bool(conv.name) and self.readers[conv.output[0]] == 1
        return alone and _attribute(conv, "group", 1) == 1 and all(map(self._constant, conv.input[1:]))

    def _constant(self, name: str) -> bool:
        """Whether it is one along whose first axis the output channels lie."""
        if name in self.constants:
            return True
        made = self.makers.get(name)
        if made is None or made.op_type != "DequantizeLinear" or _attribute(made, "axis", 1) != 0:
            return False
        return all(source in self.constants and self.constants[source].dims for source in made.input)

    def _sizes(self, split: onnx.NodeProto) -> list[slice] | None:
        """The channels of each part; None if they are not cut along channels, or not known."""
        if _attribute(split, "axis", 0) != 1 or len(split.input) < 2 or split.input[1] not in self.constants:
            return None
        ends = np.cumsum(numpy_helper.to_array(self.constants[split.input[1]])).tolist()
        return [slice(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]

    def _cut(self, source: str, part: int, where: slice, made: list[onnx.NodeProto]) -> str:
        """Some of the channels of a constant; dequantised anew where it is."""
        if source in self.constants:
            return self._new(f"{source}_part_{part}", numpy_helper.to_array(self.constants[source])[where])
        before = self.makers[source]
        node = onnx.NodeProto()
        node.CopyFrom(before)
        name = f"{source}_part_{part}"
        node.name, node.output[0] = f"{before.name}_part_{part}", name
        for index, given in enumerate(before.input):
            node.input[index] = self._new(f"{given}_part_{part}", numpy_helper.to_array(self.constants[given])[where])
        made.append(node)
        return name

    def _new(self, name: str, value: NDArray[np.generic]) -> str:
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)
