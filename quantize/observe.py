"""A float graph run over calibration patches with some of its inner tensors as outputs, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

from mednext_edge.errors import ExportError
from mednext_edge.quantize.calibration import CalibrationSet

Array = NDArray[np.float32]


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


def observe(
    graph: onnx.ModelProto,
    tensors: Iterable[str],
    calibration: CalibrationSet,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[dict[str, Array]]:
    """For every patch the values of the named tensors.

    ONNX Runtime computes a fused network several times as fast as PyTorch does on a CPU.

    Args:
        graph: float32 or float16, with one input of the patches' shape.
        tensors: names of inner tensors; all of them are in memory at once.
        calibration: patches.
        progress: called as (patches taken, patches in all).

    Raises:
        ExportError: ONNX Runtime refuses the graph.
    """
    names = list(dict.fromkeys(tensors))
    watched = widen(graph)
    taken = {output.name for output in watched.graph.output}
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in taken
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # a second arena, as large as the first
    try:
        session = ort.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class but Exception
        raise ExportError(f"ONNX Runtime cannot load the float graph to observe it: {error}") from error
    feed = session.get_inputs()[0].name
    for done, patch in enumerate(calibration.patches, 1):
        values = session.run(names, {feed: patch})
        yield dict(zip(names, values, strict=True))
        if progress is not None:
            progress(done, len(calibration.patches))
