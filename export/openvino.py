"""Target `openvino`: IR for Intel CPUs, integrated GPUs and NPUs, and any other x86-64 or Arm CPU."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from mednext_edge.bundle import Engine
from mednext_edge.errors import ExportError
from mednext_edge.evaluation.report import Fallback, Layers
from mednext_edge.export.beside_bf16 import PRECISION, note, refused_layers
from mednext_edge.export.targets import TARGETS, Job, Target
from mednext_edge.quantize.flavour import CPU
from mednext_edge.runtime.session import Session

if TYPE_CHECKING:
    import openvino as ov

FILE = "model.xml"
REASON = "OpenVINO had no INT8 kernel for it beside bfloat16 where it was exported"


def write(job: Job, folder: Path) -> Engine:
    """Write `model.xml` and `model.bin`.

    Raises:
        ExportError: OpenVINO cannot convert the graph.
    """
    import openvino as ov

    with _refusals():
        ov.save_model(_converted(job), folder / FILE, compress_to_fp16=job.precision in ("fp16", "bf16"))
    return Engine(file=FILE, provider="openvino", provider_version=version("openvino"))


def trial(job: Job) -> Session:
    """The engine itself, from memory."""
    from mednext_edge.runtime.openvino_session import OpenVinoSession

    with _refusals():
        model = _converted(job)
    return OpenVinoSession(model, job.model.task, job.precision, patch=job.patch, threads=job.threads)


def _converted(job: Job) -> ov.Model:
    from mednext_edge.export.openvino_model import to_openvino

    model, parts = to_openvino(job.graph)
    note(model, job, parts)
    return model


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Its errors as ours."""
    try:
        yield
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot convert this network: {error}") from error


def layers(session: Session, file: Path) -> Layers:
    """What the plugin of this machine executes; layers that run in another precision than asked are named."""
    from mednext_edge.runtime.openvino_session import OpenVinoSession

    assert isinstance(session, OpenVinoSession)
    found = session.layers()
    asked = session.precision.split("-")
    fallbacks = []
    for layer in found:
        names = layer.name.split(",")
        chosen = next((session.given_back[name] for name in names if name in session.given_back), None)
        if chosen is not None and layer.precision != asked[0]:
            reason = chosen
        elif layer.precision not in asked:
            reason = session.refused or _reason(session.precision, layer.kind, layer.kernel)
        elif layer.precision != asked[0] and session.kept.intersection(names):
            reason = REASON
        else:
            continue
        fallbacks.append(Fallback(name=layer.name, asked=session.precision, got=layer.precision, reason=reason))
    return Layers(counts_by_precision=dict(Counter(layer.precision for layer in found)), fallbacks=tuple(fallbacks))


def _reason(asked: str, kind: str, kernel: str) -> str:
    if asked in ("fp16", "bf16"):
        return f"this processor has no {asked} kernel for it ({kernel}); the weights are stored in 16 bits all the same"
    if asked == PRECISION:
        return f"this processor has neither an INT8 nor a bfloat16 kernel for it ({kernel})"
    if kind == "Deconvolution":
        return f"OpenVINO has no INT8 kernel for this transposed convolution ({kernel})"
    return f"OpenVINO chose {kernel}"


TARGETS.add(
    "openvino",
    Target(
        summary="OpenVINO IR",
        precisions=("fp32", "fp16", "bf16", "int8", "int8-bf16"),
        package="openvino",
        device="CPU, Intel GPU, Intel NPU",
        # Transposed depthwise convolutions are the slowest operator there: 1.0 to 1.7 times faster as parities.
        rewrites=("parity",),
        write=write,
        layers=layers,
        flavour=CPU,
        trial=trial,
        open_size=True,
        refuses=refused_layers,
    ),
)
