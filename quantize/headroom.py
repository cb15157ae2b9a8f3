"""How far the activations of a network stay below the largest float16 number.

A float16 tensor holds nothing above 65504, and a graph that computes in it answers with infinities, then NaN, then an
empty mask. ONNX Runtime on a CPU does not show this in its answer: it has no float16 kernels, and computes in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

from mednext_edge.errors import ExportError
from mednext_edge.quantize.calibration import FLOAT_PATCHES, CalibrationSet
from mednext_edge.quantize.observe import observe

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


def check_headroom(
    graph: onnx.ModelProto, calibration: CalibrationSet, progress: Callable[[int, int], None] | None = None
) -> Peak:
    """Refuse a network that float16 cannot hold.

    Args:
        graph: the float16 graph, of the patches' shape; what it computes in float32 is not looked at.
        calibration: patches; the first few are looked at.
        progress: called as (patches taken, patches in all).

    Returns:
        The largest activation.

    Raises:
        ExportError: a weight or an activation comes within a factor of 4 of the largest float16 number.
    """
    for init in graph.graph.initializer:
        if init.data_type == onnx.TensorProto.FLOAT16:
            value = float(np.abs(numpy_helper.to_array(init).astype(np.float32)).max(initial=0.0))
            _refuse_large(f"the weights {init.name}", value, LARGEST)
    few = replace(calibration, patches=calibration.patches[:FLOAT_PATCHES])
    watched, names = _with_peaks(graph)
    peak = Peak("", 0.0)
    for values in observe(watched, (name for pair in names.values() for name in pair), few, progress):
        for tensor, (low, high) in names.items():
            value = max(-float(values[low]), float(values[high]))
            if not math.isfinite(value):
                value = math.inf  # a NaN comes from an infinity
            if value > peak.value:
                peak = Peak(tensor, value)
    _refuse_large(f"the activations of {peak.tensor}", peak.value, LARGEST / MARGIN)
    return peak


def _with_peaks(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, tuple[str, str]]]:
    """The graph with the smallest and the largest value of float16 tensors beside it, and their names by tensor."""
    watched = shape_inference.infer_shapes(graph)
    halves = {
        value.name
        for value in (*watched.graph.value_info, *watched.graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    }
    names = {}
    for node in list(watched.graph.node):
        if node.op_type in SHRINKING:
            continue
        for tensor in node.output:
            if tensor in halves:
                wide = f"{tensor}_wide"
                names[tensor] = low, high = f"{tensor}_min", f"{tensor}_max"
                watched.graph.node.extend(
                    [
                        onnx.helper.make_node("Cast", [tensor], [wide], to=onnx.TensorProto.FLOAT),
                        onnx.helper.make_node("ReduceMin", [wide], [low], keepdims=0),
                        onnx.helper.make_node("ReduceMax", [wide], [high], keepdims=0),
                    ]
                )
    return watched, names


def _refuse_large(what: str, value: float, limit: float) -> None:
    if not value <= limit:
        raise ExportError(
            f"{what} reach {value:.0f}; float16 ends at {LARGEST:.0f}, and {limit:.0f} are allowed here. "
            "Export with --precision fp32"
        )
