"""Target `onnx`: a graph for ONNX Runtime and everything else that reads ONNX."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from mednext_edge.bundle import Engine
from mednext_edge.errors import ExportError
from mednext_edge.evaluation.report import Fallback, Layers
from mednext_edge.export.targets import TARGETS, Job, Target
from mednext_edge.runtime.session import Session

FILE = "model.onnx"
# A protobuf cannot be larger than 2 GB; only then do the weights go into a file of their own.
PROTOBUF_LIMIT = 2**31 - 2**20
COMPUTE = ("Conv", "ConvTranspose")


def write(job: Job, folder: Path) -> Engine:
    """Write `model.onnx` and check it.

    Raises:
        ExportError: the graph cannot be made, or `onnx.checker` refuses it.
    """
    import onnx

    from mednext_edge.export.graph import INPUT, fix_size, to_onnx

    # Calibration patches may be smaller than the engine's.
    open_size = job.dynamic or job.calibration is not None
    graph = to_onnx(job.model, job.patch, dynamic=open_size, half=job.precision == "fp16")
    if job.calibration is not None:
        from mednext_edge.quantize.ptq import quantize

        graph = quantize(graph, job.calibration, input_name=INPUT, progress=job.progress)
        if not job.dynamic:
            graph = fix_size(graph, job.patch)
    path = folder / FILE
    large = graph.ByteSize() > PROTOBUF_LIMIT
    onnx.save(graph, path, save_as_external_data=large, location=f"{FILE}.data" if large else None)
    try:
        onnx.checker.check_model(path, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exported graph does not pass onnx.checker: {error}") from error
    return Engine(file=FILE, provider="onnxruntime", provider_version=version("onnxruntime"))


def layers(session: Session, file: Path) -> Layers:
    """Precision of every convolution as it stands in the graph; ONNX Runtime fuses Q/DQ around them."""
    import onnx

    asked = session.precision
    graph = onnx.load(file, load_external_data=False).graph
    dequantized = {out for node in graph.node if node.op_type == "DequantizeLinear" for out in node.output}
    half = any(init.data_type == onnx.TensorProto.FLOAT16 for init in graph.initializer)
    counts: dict[str, int] = {}
    fallbacks = []
    for node in graph.node:
        if node.op_type in COMPUTE:
            quantized = all(name in dequantized for name in node.input[:2])
            got = "int8" if quantized else "fp16" if half else "fp32"
            counts[got] = counts.get(got, 0) + 1
            if got != asked:
                fallbacks.append(Fallback(name=node.name, asked=asked, got=got, reason=_reason(node.op_type)))
    return Layers(counts_by_precision=counts, fallbacks=tuple(fallbacks))


def _reason(kind: str) -> str:
    return "transposed convolutions are left out by the quantiser" if kind == "ConvTranspose" else "not quantised"


TARGETS.add(
    "onnx",
    Target(
        summary="ONNX graph for ONNX Runtime",
        precisions=("fp32", "fp16", "int8"),
        package="onnxruntime",
        device="CPU, CUDA",
        rewrites=(),
        write=write,
        layers=layers,
    ),
)
