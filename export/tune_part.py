"""Parts of a network as engines of their own, to be timed alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
from torch import nn

from mednext_edge.export.graph import to_onnx
from mednext_edge.models.loaded import LoadedModel, Source
from mednext_edge.models.module import FAMILY
from mednext_edge.quantize.kinds import Layer, find, layers
from mednext_edge.runtime.session import Array
from mednext_edge.task import Inference, ModelSpec, Preprocessing, Task

if TYPE_CHECKING:
    from mednext_edge.quantize.plan import Plan


def noise(channels: int, size: tuple[int, ...]) -> Array:
    """[1, C, *size], standard normal."""
    return np.random.default_rng(0).standard_normal((1, channels, *size), dtype=np.float32)


def model_of(net: nn.Module, channels: int, size: tuple[int, ...]) -> LoadedModel:
    """A part of a network as a model of its own, [1, C, *size] -> one tensor."""
    spec = ModelSpec(
        family=FAMILY,
        variant="block",
        kernel_size=1,
        spatial_dims=3 if len(size) == 3 else 2,
        in_channels=channels,
        classes=max(1, channels // 2),
        parameters=0,
        config={"divisor": 1, "any_size": False},
    )
    task = Task(
        name="block",
        model=spec,
        preprocessing=Preprocessing().model_copy(update={"normalization": Preprocessing().normalization * channels}),
        inference=Inference(patch=size),
        labels={str(n): n for n in range(spec.labels)},
    )
    return LoadedModel(net, task, Source(format="block", file="none", sha256="0" * 64))


def alone(graph: onnx.ModelProto, layer: Layer, shape: tuple[int, ...]) -> onnx.ModelProto:
    """The nodes of one layer as a graph of their own, which has the layer's name.

    Args:
        graph: without INT8, of any size.
        shape: [C, *spatial] of the layer's input.

    Raises:
        ExportError: the graph does not hold the layer.
    """
    nodes = find(graph.graph, layer)
    read = {name for node in nodes for name in node.input}
    kind = onnx.TensorProto.FLOAT
    part = onnx.helper.make_graph(
        nodes,
        layer.name,
        [onnx.helper.make_tensor_value_info(nodes[0].input[0], kind, (1, *shape))],
        [onnx.helper.make_tensor_value_info(node.output[0], kind, None) for node in nodes],
        [init for init in graph.graph.initializer if init.name in read],
    )
    return onnx.helper.make_model(part, opset_imports=graph.opset_import, ir_version=graph.ir_version)


def whole_parity(plan: Plan, name: str, shape: tuple[int, ...]) -> tuple[onnx.ModelProto, Plan]:
    """A parity form with the joining of its parts, which takes as long as they do; and the plan of this graph.

    It is traced anew: in a graph of open size the numbers that joining needs come from all over the network.
    """
    channels, *size = shape
    module = plan.layers[name].module
    graph = to_onnx(model_of(module, channels, tuple(size)), tuple(size))
    graph.graph.name = name
    (layer,) = layers(module)
    return graph, replace(plan, layers={"": layer}, ranges={"": plan.ranges[name]}, float_layers=frozenset())


def signature(part: onnx.ModelProto) -> str:
    """Equal for layers that take equally long: operators, attributes and sizes, whatever their names and numbers."""
    numbers: dict[str, str] = {value.name: str(_shape(value)) for value in part.graph.input}
    numbers.update((init.name, f"{init.data_type} {list(init.dims)}") for init in part.graph.initializer)
    lines = []
    for node in part.graph.node:
        attributes = sorted(attribute.SerializeToString(deterministic=True).hex() for attribute in node.attribute)
        lines.append(f"{node.op_type} {[numbers.get(name, '') for name in node.input]} {attributes}")
    return "\n".join(lines)


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]
