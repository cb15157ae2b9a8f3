"""What becomes INT8 in one network."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import onnx

from mednext_edge.quantize.flavour import Flavour
from mednext_edge.quantize.kinds import Layer
from mednext_edge.quantize.qdq import insert
from mednext_edge.quantize.ranges import ActivationRange


@dataclass(frozen=True)
class Plan:
    """The layers of one network that may become INT8.

    Attributes:
        layers: by name.
        ranges: of their inputs, by the same names.
        flavour: of the engine.
        float_layers: names of those that stay in float all the same.
    """

    layers: Mapping[str, Layer]
    ranges: Mapping[str, ActivationRange]
    flavour: Flavour
    float_layers: frozenset[str] = frozenset()

    def keeping(self, names: Collection[str]) -> Plan:
        """The same with other layers in float."""
        return replace(self, float_layers=frozenset(names))

    def apply(self, graph: onnx.ModelProto) -> onnx.ModelProto:
        """The graph with its layers in INT8; the graph itself is not touched.

        Raises:
            ExportError: it is of another network.
        """
        ranges = {name: seen for name, seen in self.ranges.items() if name not in self.float_layers}
        return insert(graph, self.layers, ranges, self.flavour)
