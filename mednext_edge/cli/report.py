"""A report as tables for a person, on stderr; the same figures as `report.json`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mednext_edge.cli.console import say, show_facts, show_table

if TYPE_CHECKING:
    from mednext_edge.evaluation.report import Report, Scores


def show_report(report: Report) -> None:
    """Scores of both models a class, the drop, the time, and what stood in for the engine, on stderr."""
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
    if report.stand_in is not None:
        say(f"note: {report.stand_in}", "yellow")
    for note in report.notes:
        say(f"note: {note}", "yellow")


def _scores(models: list[tuple[str, Scores]], label: str) -> list[str]:
    return [
        *(_number(scores.dice_per_class[label]) for _, scores in models),
        *(_number(scores.nsd_per_class[label]) for _, scores in models),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
