"""How far the activations of a network stay below the largest float16 number.

A float16 tensor holds nothing above 65504, and a graph that computes in it answers with infinities, then NaN, then an
empty mask. ONNX Runtime on a CPU does not show this in its answer: it has no float16 kernels, and computes in float32.
So the graph is followed in float32, where nothing overflows and the numbers themselves say how far it would have been.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

from mednext_edge.errors import ExportError
from mednext_edge.quantize.calibration import FLOAT_PATCHES, CalibrationSet
from mednext_edge.quantize.observe import Seen, observe

LARGEST = float(np.finfo(np.float16).max)
# Between patches of one data set the largest value varies by less than 2; another scanner may double it again.
MARGIN = 4.0
# Their outputs hold nothing larger than their inputs do.
SHRINKING = frozenset({"Concat", "Gelu", "Identity", "Pad", "Reshape", "Slice", "Split", "Transpose"})


@dataclass(frozen=True)
class Peak:
    """The tensor that comes closest to the limit: its name, and its largest absolute value."""

    tensor: str
    value: float


class Headroom:
    """Follows the activations of a float16 graph over patches.

    Args:
        graph: the float16 graph, of the patches' shape; what it computes in float32 is not looked at.

    Attributes:
        tensors: names of those whose extremes are to be observed.

    Raises:
        ExportError: a weight is larger than float16 can hold.
    """

    def __init__(self, graph: onnx.ModelProto) -> None:
        for init in graph.graph.initializer:
            if init.data_type == onnx.TensorProto.FLOAT16:
                value = float(np.abs(numpy_helper.to_array(init).astype(np.float32)).max(initial=0.0))
                _refuse_large(f"the weights {init.name}", value, LARGEST)
        self.tensors = _halves(graph)
        self._peak = Peak("", 0.0)

    def see(self, values: Mapping[str, Seen]) -> None:
        """Take what `tensors` hold for one patch."""
        for tensor in self.tensors:
            if values[tensor].peak > self._peak.value:
                self._peak = Peak(tensor, values[tensor].peak)

    def check(self) -> Peak:
        """The largest activation.

        Raises:
            ExportError: it comes within a factor of 4 of the largest float16 number.
        """
        _refuse_large(f"the activations of {self._peak.tensor}", self._peak.value, LARGEST / MARGIN)
        return self._peak


def check_headroom(
    graph: onnx.ModelProto, calibration: CalibrationSet, progress: Callable[[int, int], None] | None = None
) -> Peak:
    """Refuse a network that float16 cannot hold, from the first few calibration patches.

    Args:
        graph: the float16 graph, of the patches' shape.
        calibration: patches.
        progress: called as (patches taken, patches in all).

    Raises:
        ExportError: as `Headroom`.
    """
    headroom = Headroom(graph)
    few = replace(calibration, patches=calibration.patches[:FLOAT_PATCHES])
    for values in observe(graph, few, extremes=headroom.tensors, progress=progress):
        headroom.see(values)
    return headroom.check()


def _halves(graph: onnx.ModelProto) -> tuple[str, ...]:
    """The float16 tensors whose values are not another's."""
    inferred = shape_inference.infer_shapes(graph).graph
    halves = {
        value.name
        for value in (*inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    }
    return tuple(
        name for node in graph.graph.node if node.op_type not in SHRINKING for name in node.output if name in halves
    )


def _refuse_large(what: str, value: float, limit: float) -> None:
    if not value <= limit:
        raise ExportError(
            f"{what} reach {value:.0f}; float16 ends at {LARGEST:.0f}, and {limit:.0f} are allowed here. "
            "Export with --precision fp32"
        )
