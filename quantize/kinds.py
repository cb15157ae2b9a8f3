"""The kinds of layer, as INT8 sees them, and where a graph holds them.

The 1x1x1 convolutions between wide tensors hold most multiplications of a MedNeXt (nine of ten at kernel 3, seven to
eight at kernel 5) and are matrix products, which INT8 speeds up everywhere. The others are each a case of their own:
an engine may have no INT8 kernel for them, or one that is slower than float16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from mednext_edge.errors import ExportError
from mednext_edge.fusion.instance_norm import InstanceNorm
from mednext_edge.fusion.parity import ParityConvTranspose
from mednext_edge.registry import Registry

if TYPE_CHECKING:
    import onnx

THIN = 16
"""Channels below which a convolution cannot fill an INT8 tile of a tensor core (16 bytes deep)."""

KINDS: Registry[str] = Registry("layer kind")
"""Every kind, with what it is."""

KINDS.add("pointwise", "1x1x1 convolutions between wide tensors")
KINDS.add("strided", "1x1x1 convolutions with a stride, such as the residuals of the down blocks")
KINDS.add("thin", f"1x1x1 convolutions from or to fewer than {THIN} channels, such as stem and head")
KINDS.add("depthwise", "convolutions with one channel a group")
KINDS.add("transposed", "transposed depthwise convolutions, in their parity form")
KINDS.add("dense", "other convolutions with a kernel larger than 1")
KINDS.add("norm", "norms of each channel, which then read INT8; they compute in float")

NORM = "InstanceNormalization"
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
Convolution = nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d | ParityConvTranspose


@dataclass(frozen=True)
class Layer:
    """One convolution or norm of a network in deploy form.

    Attributes:
        name: of the module.
        kind: a name in KINDS.
        module: itself.
        weights: names of its weights; several in the parity form, none of a norm.
    """

    name: str
    kind: str
    module: Convolution | InstanceNorm
    weights: tuple[str, ...]

    @property
    def quantizable(self) -> bool:
        """Whether INT8 is possible at all: no engine here has a kernel for transposed convolutions as they are."""
        return not isinstance(self.module, TRANSPOSED)


def layers(net: nn.Module) -> Iterator[Layer]:
    """Every convolution, and every norm that a graph holds as one operator, in the order of the modules."""
    for name, module in net.named_modules():
        if isinstance(module, InstanceNorm):
            yield Layer(name, "norm", module, ())
        elif isinstance(module, ParityConvTranspose):
            yield Layer(name, "transposed", module, tuple(_inside(name, part) for part, _ in module.named_parameters()))
        elif isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
            yield Layer(name, kind_of(module), module, (_inside(name, "weight"),))


def _inside(module: str, part: str) -> str:
    """The name of a parameter; a network that is one layer has no name of its own."""
    return f"{module}.{part}" if module else part


def kind_of(module: Convolution) -> str:
    """The name in KINDS of a convolution."""
    if isinstance(module, (*TRANSPOSED, ParityConvTranspose)):
        return "transposed"
    if module.groups > 1 and module.groups == module.in_channels:
        return "depthwise"
    if math.prod(module.kernel_size) > 1:
        return "dense"
    if min(module.in_channels, module.out_channels) < THIN:
        return "thin"
    return "strided" if math.prod(module.stride) > 1 else "pointwise"


def find(graph: onnx.GraphProto, layer: Layer) -> list[onnx.NodeProto]:
    """The nodes that compute a layer; several in the parity form.

    Args:
        graph: with the names that `export.graph.to_onnx` gives to weights and nodes.
        layer: of its network.

    Raises:
        ExportError: they are not in the graph.
    """
    if layer.weights:
        found = [node for node in graph.node if node.op_type == "Conv" and node.input[1] in layer.weights]
        missing = set(layer.weights) - {node.input[1] for node in found}
    else:
        found = [node for node in graph.node if node.op_type == NORM and node.name == layer.name]
        missing = set() if found else {layer.name}
    if missing:
        raise ExportError(
            f"the graph has no layer with the weights {', '.join(sorted(missing))}; leave layers of the kind "
            f"{layer.kind} in float, or export with the torch version in constraints.txt"
        )
    return found
