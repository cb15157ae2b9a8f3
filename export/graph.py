"""The network as an ONNX graph: the one form that every target is made from."""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import nn

from mednext_edge.errors import ExportError
from mednext_edge.models.families import FAMILIES
from mednext_edge.models.loaded import LoadedModel

OPSET = 20
"""First opset with Gelu as one operator, which every runtime here has a kernel for."""
INPUT, OUTPUT = "image", "logits"
AXES = {2: ("height", "width"), 3: ("depth", "height", "width")}


def _half(net: nn.Module) -> nn.Module:
    """A float16 copy of a network with float32 input and output; hooks, so that the parameters keep their names."""
    net = copy.deepcopy(net).half()
    net.register_forward_pre_hook(lambda module, args: tuple(x.half() for x in args))
    net.register_forward_hook(lambda module, args, output: output.float())
    return net


def to_onnx(
    model: LoadedModel, patch: tuple[int, ...], *, dynamic: bool = False, half: bool = False
) -> onnx.ModelProto:
    """Export a model in deploy form.

    Args:
        model: returns one tensor, [1, C, *patch] -> [1, classes, *patch].
        patch: spatial size.
        dynamic: leave the spatial sizes open, as multiples of the network's divisor.
        half: compute in float16, but for the norms' statistics; input and output stay float32.

    Raises:
        ExportError: the exporter refuses the network, or its graph does not pass `onnx.checker`.
    """
    spec = model.task.model
    divisor = FAMILIES[spec.family].divisor(spec)
    shapes = None
    if dynamic:
        sizes = {2 + i: divisor * torch.export.Dim(name, min=2) for i, name in enumerate(AXES[spec.spatial_dims])}
        fixed = torch.export.Dim.STATIC
        shapes = ({0: fixed, 1: fixed, **sizes},)
        # The exporter takes a size of one for a constant; the graph does not depend on the sizes it was traced with.
        patch = tuple(max(n, 2 * divisor) for n in patch)
    net = _half(model.net) if half else model.net
    try:
        with _quiet():
            program = torch.onnx.export(
                net,
                (torch.zeros(1, spec.in_channels, *patch),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=shapes,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever went wrong in many types
        raise ExportError(f"torch.onnx cannot export this network: {error}") from error
    assert program is not None
    graph = program.model_proto
    _use_first_names(graph.graph, net)
    _name_layers(graph.graph)
    _forget_traces(graph.graph)
    onnx.helper.set_model_props(graph, {"mednext_edge.task": model.task.model_dump_json()})
    return graph


def fix_size(graph: onnx.ModelProto, patch: tuple[int, ...]) -> onnx.ModelProto:
    """A graph of open spatial size as one of this patch alone."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(graph)
    for value in (fixed.graph.input[0], fixed.graph.output[0]):
        # The answer of a classification has no spatial axes.
        for dim, size in zip(value.type.tensor_type.shape.dim[2:], patch, strict=False):
            dim.dim_value = size  # replaces the name of an open size
    # What was inferred for the open size is inferred again.
    del fixed.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(fixed)


def _use_first_names(graph: onnx.GraphProto, net: nn.Module) -> None:
    """Weights of layers with several names, as foreign networks have them, get the one that `named_modules` gives."""
    first = {id(weight): name for name, weight in net.named_parameters()}
    others = {name: first[id(weight)] for name, weight in net.named_parameters(remove_duplicate=False)}
    for weight in graph.initializer:
        weight.name = others.get(weight.name, weight.name)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = others.get(name, name)


def _name_layers(graph: onnx.GraphProto) -> None:
    """Give every convolution and norm the name of its layer, which reports of graphs and engines then speak of."""
    weights = {init.name for init in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in weights:
            node.name = node.input[1].removesuffix(".weight")
        elif node.op_type == "InstanceNormalization":
            noted = {prop.key: prop.value for prop in node.metadata_props}
            # From the network down to the operator itself; the last but one is the module that called it.
            *_, node.name, _ = ast.literal_eval(noted["pkg.torch.onnx.name_scopes"])


def _forget_traces(graph: onnx.GraphProto) -> None:
    """Remove what the exporter noted for its own debugging: stack traces hold the paths of the exporting machine."""
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress on stdout and warns about optional packages it does not find."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
