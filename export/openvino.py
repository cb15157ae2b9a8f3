"""Target `openvino`: IR for Intel CPUs, integrated GPUs and NPUs, and any other x86-64 or Arm CPU."""

from __future__ import annotations

import io
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from mednext_edge.bundle import Engine
from mednext_edge.errors import ExportError
from mednext_edge.evaluation.report import Fallback, Layers
from mednext_edge.export.targets import TARGETS, Job, Target
from mednext_edge.runtime.session import Session

FILE = "model.xml"
# The CPU plugin's INT8 sum of a block and its residual is far off the sum of the two quantised tensors (OpenVINO
# 2026.4, AVX2: cosine of the logits to FP32 0.94 instead of 0.996), and no faster than the one in FP32.
FLOAT_OPERATORS = ("Add",)


def write(job: Job, folder: Path) -> Engine:
    """Write `model.xml` and `model.bin`.

    Raises:
        ExportError: the graph cannot be made or converted.
    """
    import openvino as ov

    from mednext_edge.export.depth_to_space import use_depth_to_space
    from mednext_edge.export.early_quantizers import quantize_early
    from mednext_edge.export.graph import INPUT, to_onnx

    graph = to_onnx(job.model, job.patch, dynamic=True)
    try:
        # Unlike `read_model`, this folds constants: NNCF recognises a bias, which it corrects, as a constant only.
        model = ov.convert_model(io.BytesIO(graph.SerializeToString()))
        use_depth_to_space(model)
        if job.calibration is not None:
            from mednext_edge.quantize.ptq import quantize

            open_shape = model.inputs[0].partial_shape
            # NNCF infers while it collects ranges, and a static graph is several times faster at that.
            model.reshape(list(job.calibration.patches[0].shape))
            model = quantize(
                model,
                job.calibration,
                input_name=INPUT,
                float_operators=FLOAT_OPERATORS,
                progress=lambda done, total: job.progress("calibrate", done, total),
            )
            model.reshape(open_shape)
            quantize_early(model)
        ov.save_model(model, folder / FILE, compress_to_fp16=job.precision in ("fp16", "bf16"))
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot convert this network: {error}") from error
    return Engine(file=FILE, provider="openvino", provider_version=version("openvino"))


def layers(session: Session, file: Path) -> Layers:
    """What the plugin of this machine executes; layers that run in another precision than asked are named."""
    from mednext_edge.runtime.openvino_session import OpenVinoSession

    assert isinstance(session, OpenVinoSession)
    found = session.layers()
    asked = session.precision
    return Layers(
        counts_by_precision=dict(Counter(layer.precision for layer in found)),
        fallbacks=tuple(
            Fallback(name=layer.name, asked=asked, got=layer.precision, reason=_reason(asked, layer.kind, layer.kernel))
            for layer in found
            if layer.precision != asked
        ),
    )


def _reason(asked: str, kind: str, kernel: str) -> str:
    if asked in ("fp16", "bf16"):
        return f"this processor has no {asked} kernel for it ({kernel}); the weights are stored in 16 bits all the same"
    if kind == "Deconvolution":
        return f"OpenVINO has no INT8 kernel for this transposed convolution ({kernel})"
    return f"OpenVINO chose {kernel}"


TARGETS.add(
    "openvino",
    Target(
        summary="OpenVINO IR",
        precisions=("fp32", "fp16", "bf16", "int8"),
        package="openvino",
        device="CPU, Intel GPU, Intel NPU",
        # Transposed depthwise convolutions are the slowest operator there: 1.0 to 1.7 times faster as parities.
        rewrites=("parity",),
        write=write,
        layers=layers,
        open_size=True,
    ),
)
