"""`mednext-edge validate`: a bundle or a checkpoint against labelled images."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from mednext_edge.cli.console import (
    DEVICE_OPTION,
    JSON_OPTION,
    MAX_CASE_DROP,
    MAX_CLASS_DROP,
    METRIC,
    NO_PROGRESS_OPTION,
    THREADS_OPTION,
    emit_json,
    say,
    track,
)
from mednext_edge.cli.report import show_report
from mednext_edge.errors import AccuracyGateError, DataError


def validate(
    source: Annotated[str, typer.Argument(metavar="BUNDLE|CHECKPOINT", help="What to validate.")],
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="Labelled images: a folder with dataset.json, one with images and labels or masks, one with a folder "
            "for each class, a JSON file that describes raster images, IMAGES,LABELS, or demo:NAME. Its validation "
            "cases are used.",
        ),
    ],
    baseline: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="What to compare with; the drop is measured against it.")
    ] = None,
    metric: Annotated[str | None, METRIC] = None,
    max_drop: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Largest drop against --baseline; more ends with exit code 3.")
    ] = 0.005,
    max_class_drop: Annotated[float | None, MAX_CLASS_DROP] = None,
    max_case_drop: Annotated[float | None, MAX_CASE_DROP] = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="Average over flips, as nnU-Net does (slower).")] = False,
    device: Annotated[str | None, DEVICE_OPTION] = None,
    threads: Annotated[int | None, THREADS_OPTION] = None,
    json: Annotated[bool, JSON_OPTION] = False,
    no_progress: Annotated[bool, NO_PROGRESS_OPTION] = False,
) -> None:
    """Predict labelled images and measure Dice, IoU and surface Dice, or accuracy and AUC, agreement and time.

    Examples:

    - `mednext-edge validate hippocampus.openvino-int8 --data Task04_Hippocampus --baseline demo:hippocampus`
    - `mednext-edge validate nnUNet_results/.../fold_0 --data DATA --json`
    """
    from mednext_edge.cli.sources import open_source
    from mednext_edge.data.dataset import open_dataset
    from mednext_edge.evaluation.gate import check_gate
    from mednext_edge.evaluation.limits import Limits
    from mednext_edge.evaluation.validate import validate as measure

    limits = Limits(metric=metric, mean=max_drop, per_class=max_class_drop, per_case=max_case_drop)
    limits.check()  # before an hour of work, not after it
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(track(not no_progress))
        dataset = open_dataset(data)
        session = stack.enter_context(open_source(source, device=device, threads=threads))
        limits = limits.of(session.task.model.kind)
        if dataset.kind != session.task.model.kind:
            raise DataError(f"{data} is for {dataset.kind}; this network is for {session.task.model.kind}")
        other = stack.enter_context(open_source(baseline, device=device, threads=threads)) if baseline else None
        report = measure(session, dataset.validation, baseline=other, mirror=mirror, progress=progress)
    gate = check_gate(report, limits)
    if json:
        emit_json({"source": source, "data": data, "gate": gate, "report": report})
    else:
        show_report(report)
        if baseline:
            say(f"accuracy gate {gate.status}: {gate.reason}", "green" if gate.passed else "yellow")
    if gate.status == "failed":
        raise AccuracyGateError(f"{gate.reason}; allow it with --max-drop, or export again at a higher precision")
