"""`mednext-edge build`: finish a bundle on the device that its engine is for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mednext_edge.cli.console import JSON_OPTION, METRIC, NO_PROGRESS_OPTION, emit_json, say, track
from mednext_edge.cli.names import parse_names
from mednext_edge.cli.report import show_report
from mednext_edge.errors import AccuracyGateError

if TYPE_CHECKING:
    from mednext_edge.export.build import BuildOutcome


def build(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle of --target trt or trt-rtx.")],
    gpu_arch: Annotated[
        str | None,
        typer.Option(
            "--gpu-arch", metavar="CC[,CC]", help="Compute capabilities to build for. [default: the bundle's recipe]"
        ),
    ] = None,
    validate: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Labelled images to validate the engine on. [default: the demo's data, for a demo model]",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="What the bundle was exported from; the drop is measured against it. "
            "[default: the bundle's own graph]",
        ),
    ] = None,
    metric: Annotated[str | None, METRIC] = None,
    max_drop: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Largest drop against the baseline; more ends with exit code 3.")
    ] = 0.005,
    json: Annotated[bool, JSON_OPTION] = False,
    no_progress: Annotated[bool, NO_PROGRESS_OPTION] = False,
) -> None:
    """Build the engine of a deferred bundle on its device, or build a bundle anew for another GPU or TensorRT.

    The engine is compared with the graph it was built from, validated where there are labelled images, and the
    bundle is sealed again. A build that fails leaves the bundle as it was.

    Examples:

    - `mednext-edge build brain-tissue.trt-int8`
    - `mednext-edge build hippocampus.trt-int8 --validate Task04_Hippocampus --baseline hippocampus.safetensors`
    - `mednext-edge build brain-tissue.trt-rtx-fp16 --gpu-arch 7.5`
    """
    from mednext_edge.evaluation.limits import Limits
    from mednext_edge.export.build import BuildRequest, run_build

    request = BuildRequest(
        bundle=bundle,
        archs=parse_names(gpu_arch),
        validate=validate,
        checkpoint=baseline,
        limits=Limits(metric=metric, mean=max_drop),
    )
    with track(not no_progress) as progress:
        outcome = run_build(request, progress)
    if json:
        emit_json(outcome)
    else:
        _show(outcome)
    if outcome.gate.status == "failed":
        raise AccuracyGateError(f"{outcome.gate.reason}; {bundle} is kept, marked as failed, with its report")


def _show(outcome: BuildOutcome) -> None:
    engine = outcome.manifest.engine
    show_report(outcome.report)
    say(f"accuracy gate {outcome.gate.status}: {outcome.gate.reason}")
    say(f"{outcome.path} built with {engine.provider} {engine.provider_version} for {engine.arch}", "green")
