"""Target `onnx`: a graph for ONNX Runtime and everything else that reads ONNX."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from mednext_edge.bundle import Engine
from mednext_edge.errors import ExportError
from mednext_edge.evaluation.report import Layers
from mednext_edge.export.placement import placement
from mednext_edge.export.targets import TARGETS, Job, Target
from mednext_edge.quantize.flavour import CPU
from mednext_edge.runtime.session import Session

if TYPE_CHECKING:
    import onnx

FILE = "model.onnx"
# A protobuf cannot be larger than 2 GB; only then do the weights go into a file of their own.
PROTOBUF_LIMIT = 2**31 - 2**20


def write(job: Job, folder: Path) -> Engine:
    """Write `model.onnx` and check it.

    Raises:
        ExportError: `onnx.checker` refuses it.
    """
    save(job.graph, folder / FILE)
    return Engine(file=FILE, provider="onnxruntime", provider_version=version("onnxruntime"))


def trial(job: Job) -> Session:
    """The graph in ONNX Runtime, from memory."""
    from mednext_edge.runtime.onnx_session import OnnxSession

    session = OnnxSession(job.graph.SerializeToString(), job.model.task, job.precision)
    session.patch = session.patch or job.patch
    return session


def save(graph: onnx.ModelProto, path: Path) -> None:
    """Write a graph, with a file of its own for the weights where one protobuf cannot hold them, and check it.

    Raises:
        ExportError: `onnx.checker` refuses it.
    """
    import onnx

    large = graph.ByteSize() > PROTOBUF_LIMIT
    onnx.save(graph, path, save_as_external_data=large, location=f"{path.name}.data" if large else None)
    try:
        onnx.checker.check_model(path, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exported graph does not pass onnx.checker: {error}") from error


def layers(session: Session, file: Path) -> Layers:
    """Precision of every convolution as it stands in the graph; ONNX Runtime fuses Q/DQ around them."""
    return placement(file, session.precision)


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
        flavour=CPU,
        trial=trial,
        half=("fp16",),
    ),
)
