"""`mednext-edge validate`: a bundle or a checkpoint against labelled images."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from mednext_edge.cli.console import (
    DEVICE_OPTION,
    JSON_OPTION,
    NO_PROGRESS_OPTION,
    THREADS_OPTION,
    emit_json,
    say,
    show_facts,
    show_table,
    track,
)
from mednext_edge.errors import AccuracyGateError

if TYPE_CHECKING:
    from mednext_edge.evaluation.report import Report, Scores


def validate(
    source: Annotated[str, typer.Argument(metavar="BUNDLE|CHECKPOINT", help="What to validate.")],
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="Labelled images: a folder with dataset.json, one with images and labels, two folders as "
            "IMAGES,LABELS, or demo:NAME. Its validation cases are used.",
        ),
    ],
    baseline: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="What to compare with; the drop is measured against it.")
    ] = None,
    metric: Annotated[str, typer.Option(metavar="METRIC", help="What must not drop: dice or nsd.")] = "dice",
    max_drop: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Largest drop against --baseline; more ends with exit code 3.")
    ] = 0.005,
    mirror: Annotated[bool, typer.Option("--mirror", help="Average over flips, as nnU-Net does (slower).")] = False,
    device: Annotated[str, DEVICE_OPTION] = "CPU",
    threads: Annotated[int | None, THREADS_OPTION] = None,
    json: Annotated[bool, JSON_OPTION] = False,
    no_progress: Annotated[bool, NO_PROGRESS_OPTION] = False,
) -> None:
    """Predict labelled images and measure Dice, surface Dice, agreement and time.

    \b
    mednext-edge validate hippocampus.openvino-int8 --data Task04_Hippocampus --baseline demo:hippocampus
    mednext-edge validate nnUNet_results/.../fold_0 --data DATA --json
    """
    from mednext_edge.cli.sources import open_source
    from mednext_edge.data.dataset import open_dataset
    from mednext_edge.evaluation import validate as measure
    from mednext_edge.evaluation.gate import check_gate
    from mednext_edge.evaluation.metrics import METRICS

    _ = METRICS[metric]  # an unknown metric is told before an hour of work, not after it
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(track(not no_progress))
        dataset = open_dataset(data)
        session = stack.enter_context(open_source(source, device=device, threads=threads))
        other = stack.enter_context(open_source(baseline, device=device, threads=threads)) if baseline else None
        report = measure(session, dataset.validation, baseline=other, mirror=mirror, progress=progress)
    gate = check_gate(report, metric, max_drop)
    if json:
        emit_json({"source": source, "data": data, "gate": gate, "report": report})
    else:
        show_report(report)
        if baseline:
            say(f"accuracy gate {gate.status}: {gate.reason}", "green" if gate.passed else "yellow")
    if gate.status == "failed":
        raise AccuracyGateError(f"{gate.reason}; allow it with --max-drop, or export again at a higher precision")


def show_report(report: Report) -> None:
    """Scores of both models a class, the drop, and the time, on stderr."""
    accuracy = report.accuracy
    if accuracy is not None and accuracy.exported is not None:
        models = [(name, s) for name, s in (("baseline", accuracy.baseline), ("this", accuracy.exported)) if s]
        columns = [f"{title} {name}" for title in ("Dice", "surface Dice") for name, _ in models]
        rows = [[label, *_scores(models, label)] for label in accuracy.exported.dice_per_class]
        rows.append(["mean", *(_number(s.dice_mean) for _, s in models), *(_number(s.nsd_mean) for _, s in models)])
        show_table(f"Accuracy on {accuracy.labelled} labelled cases", ["class", *columns], rows)
    facts: list[tuple[str, object]] = []
    if accuracy is not None and accuracy.drop is not None:
        interval = accuracy.drop.ci95
        span = f" (95 % interval {interval[0]:+.4f} to {interval[1]:+.4f})" if interval else ""
        facts.append(("Dice drop", f"{_number(accuracy.drop.dice_mean)}{span}"))
    if accuracy is not None and accuracy.voxel_agreement is not None:
        facts.append(("voxels as the baseline", f"{100 * accuracy.voxel_agreement:.3f} %"))
    if report.end_to_end is not None:
        facts.append(("time a case", f"{report.end_to_end.case_s:.2f} s"))
    if report.latency is not None:
        facts.append(("time a patch", f"{report.latency.p50_ms:.1f} ms (median)"))
    if report.peak_memory_mb is not None:
        facts.append(("peak memory", f"{report.peak_memory_mb:.0f} MB"))
    if report.size_mb is not None:
        facts.append(("size", f"{report.size_mb:.1f} MB"))
    show_facts("", facts)


def _scores(models: list[tuple[str, Scores]], label: str) -> list[str]:
    return [
        *(_number(scores.dice_per_class[label]) for _, scores in models),
        *(_number(scores.nsd_per_class[label]) for _, scores in models),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
