"""A report as tables for a person, on stderr; the same figures as `report.json`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mednext_edge.cli.console import say, show_facts, show_table

if TYPE_CHECKING:
    from mednext_edge.evaluation.report import Classification, Report, Scores


SHOWN = ("dice", "iou", "nsd")


def show_report(report: Report) -> None:
    """Scores of both models a class, the drop, the time, and what stood in for the engine, on stderr."""
    if report.classification is not None:
        _show_classes(report.classification)
    accuracy = report.accuracy
    if accuracy is not None and accuracy.exported is not None:
        models = [(name, s) for name, s in (("baseline", accuracy.baseline), ("this", accuracy.exported)) if s]
        columns = [f"{title} {name}" for title in ("Dice", "IoU", "surface Dice") for name, _ in models]
        rows = [[label, *_scores(models, label)] for label in accuracy.exported.dice_per_class]
        rows.append(["mean", *(_number(s.mean(metric)) for metric in SHOWN for _, s in models)])
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


def _show_classes(found: Classification) -> None:
    models = [(name, s) for name, s in (("baseline", found.baseline), ("this", found.exported)) if s is not None]
    if found.exported is None:
        return
    rows = [[metric, *(_number(s.metrics[metric]) for _, s in models)] for metric in found.exported.metrics]
    rows += [[f"sensitivity {n}", *(_number(s.sensitivity_per_class[n]) for _, s in models)] for n in found.labels]
    rows += [[f"F1 {n}", *(_number(s.f1_per_class[n]) for _, s in models)] for n in found.labels]
    show_table(f"Accuracy on {found.labelled} labelled cases", ["", *(name for name, _ in models)], rows)
    counts = zip(found.labels, found.exported.confusion, strict=True)
    show_table("Reference (rows) and answer (columns)", ["", *found.labels], [[name, *row] for name, row in counts])
    facts: list[tuple[str, object]] = []
    for metric, span in found.drop.items():
        interval = f" (95 % interval {span.ci95[0]:+.4f} to {span.ci95[1]:+.4f})" if span.ci95 else ""
        facts.append((f"{metric} drop", f"{_number(span.mean)}{interval}"))
    if found.agreement is not None:
        facts.append(("classes as the baseline", f"{100 * found.agreement:.2f} %"))
    show_facts("", facts)


def _scores(models: list[tuple[str, Scores]], label: str) -> list[str]:
    return [
        *(_number(scores.dice_per_class.get(label)) for _, scores in models),
        *(_number(scores.iou_per_class.get(label)) for _, scores in models),
        *(_number(scores.nsd_per_class.get(label)) for _, scores in models),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
