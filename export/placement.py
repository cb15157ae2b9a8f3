"""In which precision the convolutions of an ONNX graph stand, by its Q/DQ pairs and types."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import onnx

from mednext_edge.evaluation.report import Fallback, Layers

COMPUTE = ("Conv", "ConvTranspose")


def placement(file: Path, asked: str) -> Layers:
    """The precision of every convolution as it stands in the graph; the engine decides what it makes of it.

    Args:
        file: the graph.
        asked: the precision that the export was asked for.
    """
    graph = onnx.load(file, load_external_data=False).graph
    dequantized = {out for node in graph.node if node.op_type == "DequantizeLinear" for out in node.output}
    weights = {init.name: init for init in graph.initializer}
    counts: Counter[str] = Counter()
    fallbacks = []
    for node in graph.node:
        if node.op_type not in COMPUTE:
            continue
        if all(name in dequantized for name in node.input[:2]):
            got = "int8"
        else:
            half = any(name in weights and weights[name].data_type == onnx.TensorProto.FLOAT16 for name in node.input)
            got = "fp16" if half else "fp32"
        counts[got] += 1
        if got != asked:
            fallbacks.append(Fallback(name=node.name, asked=asked, got=got, reason=_reason(node, weights)))
    return Layers(counts_by_precision=dict(counts), fallbacks=tuple(fallbacks))


def _reason(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> str:
    if node.op_type == "ConvTranspose":
        return "a transposed convolution: no engine has an INT8 kernel for it"
    shape = tuple(weights[node.input[1]].dims) if node.input[1] in weights else ()
    if shape and shape[1] == 1 and math.prod(shape[2:]) > 1:
        return "a depthwise convolution: not quantised for this target unless asked to"
    return "a convolution of little work: not quantised for this target unless asked to"
