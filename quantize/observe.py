"""A float graph run over calibration patches, and what its inner tensors hold: extremes, means, samples.

All of it is computed inside the graph, right after the tensor is, so that none leaves it or outlives its last reader:
memory stays that of inference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from mednext_edge.errors import ExportError
from mednext_edge.quantize.calibration import CalibrationSet

Array = NDArray[np.float32]

# Values of one tensor of one patch that enter a sample, at least where it has so many, and fewer than twice as many.
SAMPLED = 2**18
EXTREMES = ("/low", "/high")
EVERY = (*EXTREMES, "/mean", "/sample")


@dataclass(frozen=True)
class Seen:
    """What a tensor [1, C, ...] holds for one patch.

    Attributes:
        low, high: its extremes.
        mean: [C], over the voxels; None where only the extremes were asked for.
        sample: evenly spread values, fewer than 2^19 of them; None as `mean`.
    """

    low: float
    high: float
    mean: Array | None = None
    sample: Array | None = None

    @property
    def peak(self) -> float:
        """The largest absolute value; infinite for anything that is not finite."""
        value = max(-self.low, self.high)
        finite = np.isfinite([self.low, self.high]).all() and (self.mean is None or np.isfinite(self.mean).all())
        return value if finite else float("inf")


def observe(
    graph: onnx.ModelProto,
    calibration: CalibrationSet,
    *,
    extremes: Iterable[str] = (),
    samples: Iterable[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[dict[str, Seen]]:
    """For every patch what the named tensors hold.

    ONNX Runtime computes a fused network several times as fast as PyTorch does on a CPU.

    Args:
        graph: float32 or float16, with one input of the patches' shape.
        calibration: patches.
        extremes: names of tensors to know the extremes of.
        samples: names of tensors to know all of; they may be among `extremes` too.
        progress: called as (patches taken, patches in all).

    Raises:
        ExportError: ONNX Runtime refuses the graph.
    """
    watches = dict.fromkeys(extremes, False) | dict.fromkeys(samples, True)
    session = open_graph(watching(graph, watches))
    feed = session.get_inputs()[0].name
    wanted = [f"{name}{part}" for name, whole in watches.items() for part in (EVERY if whole else EXTREMES)]
    for done, patch in enumerate(calibration.patches, 1):
        # Nothing here holds on to the samples: 142 MB of MedNeXt-L at 64^3.
        yield _seen(watches, session.run(wanted, {feed: patch}))
        if progress is not None:
            progress(done, len(calibration.patches))


def _seen(watches: Mapping[str, bool], found: Iterable[Array]) -> dict[str, Seen]:
    values = iter(found)
    return {
        name: Seen(float(next(values)), float(next(values)), *(next(values) for _ in EVERY[2:] if whole))
        for name, whole in watches.items()
    }


def open_graph(graph: onnx.ModelProto) -> ort.InferenceSession:
    """A graph in ONNX Runtime, float16 as float32.

    Raises:
        ExportError: ONNX Runtime refuses it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # As the nodes are listed. Left to itself, ONNX Runtime computes what hangs on inner tensors last of all, and every
    # one of them waits for it: 16 GB more for MedNeXt-L at 128^3.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.enable_mem_pattern = False  # a second arena, as large as the first
    options.enable_mem_reuse = False  # a tensor that another will follow is kept until then
    options.enable_cpu_mem_arena = False  # it grows by powers of two, and gives nothing back between patches
    try:
        return ort.InferenceSession(widen(graph).SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class but Exception
        raise ExportError(f"ONNX Runtime cannot load the graph to observe it: {error}") from error


def watching(graph: onnx.ModelProto, watches: Mapping[str, bool]) -> onnx.ModelProto:
    """A graph with the statistics of tensors as outputs, with the suffixes of `EVERY`.

    Args:
        graph: stays as it is.
        watches: by the names of the tensors, whether all of `EVERY` is asked for, or `EXTREMES` alone.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(graph)
    body = watched.graph
    del body.node[:]
    left = dict(watches)

    def watch(names: Iterable[str]) -> None:
        for name in names:
            if name in left:
                _watch(body, name, left.pop(name))

    watch(value.name for value in (*graph.graph.input, *graph.graph.initializer))
    for node in graph.graph.node:
        body.node.append(node)
        watch(node.output)
    watch(tuple(left))  # ONNX Runtime says that there are none
    return watched


def _watch(graph: onnx.GraphProto, name: str, whole: bool) -> None:
    """Put the statistics of a tensor behind the last node."""

    def constant(suffix: str, value: int) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray([value], np.int64), f"{name}{suffix}"))
        return f"{name}{suffix}"

    def node(kind: str, inputs: list[str], suffix: str, **attributes: int) -> str:
        graph.node.append(helper.make_node(kind, inputs, [f"{name}{suffix}"], f"{name}{suffix}", **attributes))
        return f"{name}{suffix}"

    node("ReduceMin", [name], "/low", keepdims=0)
    node("ReduceMax", [name], "/high", keepdims=0)
    if whole:
        one = constant("/1", 1)
        rows = node("Flatten", [name], "/rows", axis=2)  # [C, voxels]
        node("ReduceMean", [rows, one], "/mean", keepdims=0)
        flat = node("Reshape", [name, constant("/-1", -1)], "/flat")
        # An odd step, so that the sample does not stay in one plane of a volume with even sides.
        size = node("Size", [name], "/size")
        step = node("BitwiseOr", [node("Div", [size, constant("/sampled", SAMPLED)], "/quotient"), one], "/step")
        ends = constant("/first", 0), constant("/last", np.iinfo(np.int64).max)
        node("Slice", [flat, *ends, constant("/0", 0), step], "/sample")
    for part in EVERY if whole else EXTREMES:
        graph.output.append(helper.make_tensor_value_info(f"{name}{part}", onnx.TensorProto.FLOAT, None))


def widen(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A float16 graph with the same numbers for weights and the same names, but float32 throughout.

    Nothing overflows in it, and a CPU, which has no float16 kernels, does not convert to and fro.
    """
    wide = onnx.ModelProto()
    wide.CopyFrom(graph)
    constants = [attr.t for node in wide.graph.node for attr in node.attribute if attr.HasField("t")]
    for tensor in (*wide.graph.initializer, *constants):
        if tensor.data_type == onnx.TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in wide.graph.node:
        for attr in node.attribute:
            if node.op_type == "Cast" and attr.name == "to" and attr.i == onnx.TensorProto.FLOAT16:
                attr.i = onnx.TensorProto.FLOAT
    for value in (*wide.graph.input, *wide.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    del wide.graph.value_info[:]
    return wide
