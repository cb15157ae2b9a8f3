"""A float graph run over calibration patches with some of its inner tensors as outputs, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from mednext_edge.errors import ExportError
from mednext_edge.quantize.calibration import CalibrationSet

Array = NDArray[np.float32]


def observe(
    graph: onnx.ModelProto,
    tensors: Iterable[str],
    calibration: CalibrationSet,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[dict[str, Array]]:
    """For every patch the values of the named tensors.

    ONNX Runtime computes a fused network several times as fast as PyTorch does on a CPU.

    Args:
        graph: float32 or float16, with one float32 input of the patches' shape.
        tensors: names of inner tensors; all of them are in memory at once.
        calibration: patches.
        progress: called as (patches taken, patches in all).

    Raises:
        ExportError: ONNX Runtime refuses the graph.
    """
    names = list(dict.fromkeys(tensors))
    watched = onnx.ModelProto()
    watched.CopyFrom(graph)
    wide = {name: f"{name}_observed" for name in names}
    watched.graph.node.extend(
        onnx.helper.make_node("Cast", [name], [output], to=onnx.TensorProto.FLOAT) for name, output in wide.items()
    )
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None) for output in wide.values()
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
        values = session.run(list(wide.values()), {feed: patch})
        yield dict(zip(names, values, strict=True))
        if progress is not None:
            progress(done, len(calibration.patches))
