"""A report for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mednext_edge.environment import Environment
from mednext_edge.evaluation.classes import CLASS_METRICS
from mednext_edge.evaluation.limits import Limits
from mednext_edge.evaluation.report import Accuracy, Classification, Control, Drop, Latency, Layers, Report, Scores

NOTICE = "Research software, not a medical device: not for diagnosis or treatment."


def to_markdown(report: Report) -> str:
    """The report as Markdown tables; sections that were not measured are left out."""
    sections = ["# Report", NOTICE]
    if report.stand_in is not None:
        sections.append(f"Of the accuracy below: {report.stand_in}.")
    if report.notes:
        sections.append("\n".join(f"- Note: {note}." for note in report.notes))
    if report.accuracy is not None:
        sections += _accuracy(report.accuracy)
    if report.classification is not None:
        sections += _classification(report.classification)
    sections += _speed(report)
    if report.layers is not None:
        sections += _layers(report.layers)
    if report.control is not None:
        sections += _control(report.control)
    sections += _cases(report)
    sections += _environment(report.environment)
    return "\n\n".join(sections) + "\n"


def _accuracy(accuracy: Accuracy) -> list[str]:
    found = ["## Accuracy", f"{_count(accuracy.cases, 'case')}, {accuracy.labelled} with reference labels."]
    if accuracy.collapsed:
        found.append("**Collapsed: the exported model finds nothing but background.**")
    models = [(name, scores) for name, scores in _models(accuracy) if scores is not None]
    if models:
        found.append(_score_table(models))
        found.append(
            "Dice (F1) and IoU: overlap. NSD: part of the surfaces within 1 mm. Means are over the cases, then over "
            "the classes; a class that is in neither map of a case is left out there."
        )
    if accuracy.drop is not None:
        found += _drop(accuracy.drop, accuracy.labelled)
    if accuracy.voxel_agreement is not None:
        found.append(
            f"Voxels with the baseline's label: {_percent(accuracy.voxel_agreement)} of all, "
            f"{_percent(accuracy.voxel_agreement_foreground)} of the foreground of either."
        )
    return found


def _classification(found: Classification) -> list[str]:
    sections = ["## Accuracy", f"{_count(found.cases, 'case')}, {found.labelled} with a reference class."]
    if found.collapsed:
        sections.append("**Collapsed: the exported model finds one class in every case.**")
    models = [(n, s) for n, s in (("baseline", found.baseline), ("exported", found.exported)) if s is not None]
    if models:
        head = ["", *(f"{name} ({scores.precision}, {scores.provider})" for name, scores in models)]
        rows = [
            [CLASS_METRICS[metric].title, *(_score(scores.metrics[metric]) for _, scores in models)]
            for metric in models[0][1].metrics
        ]
        for title, field in (
            ("sensitivity", "sensitivity_per_class"),
            ("F1", "f1_per_class"),
            ("AUC", "auc_per_class"),
        ):
            rows += [
                [f"{title}, {name}", *(_score(getattr(s, field)[name]) for _, s in models)] for name in found.labels
            ]
        sections.append(_table(head, rows))
    if found.drop:
        rows = [
            [CLASS_METRICS[metric].title, _signed(span.mean), _interval(span.ci95)]
            for metric, span in found.drop.items()
        ]
        sections.append(_table(["drop (baseline minus exported)", "mean", "95 % interval"], rows))
    if found.agreement is not None:
        sections.append(f"Cases with the baseline's class: {_percent(found.agreement)}.")
    if found.exported is not None:
        counts = zip(found.labels, found.exported.confusion, strict=True)
        sections.append("Cases by reference (rows) and answer of the exported model (columns):")
        sections.append(_table(["", *found.labels], [[name, *map(str, row)] for name, row in counts]))
    return sections


def _models(accuracy: Accuracy) -> tuple[tuple[str, Scores | None], ...]:
    return (("baseline", accuracy.baseline), ("exported", accuracy.exported))


def _score_table(models: Sequence[tuple[str, Scores]]) -> str:
    head = ["class"]
    for name, scores in models:
        title = f"{name} ({scores.precision}, {scores.provider})"
        head += [f"{metric}, {title}" for metric in ("Dice", "IoU", "NSD")]
    rows = []
    for label in models[0][1].dice_per_class:
        cells = [label]
        for _, scores in models:
            parts = (scores.dice_per_class, scores.iou_per_class, scores.nsd_per_class)
            cells += [_score(part.get(label)) for part in parts]
        rows.append(cells)
    mean = ["**mean**"]
    for _, scores in models:
        mean += [_score(value) for value in (scores.dice_mean, scores.iou_mean, scores.nsd_mean)]
    return _table(head, [*rows, mean])


def _drop(drop: Drop, labelled: int) -> list[str]:
    rows = [
        ["Dice", _signed(drop.dice_mean), _interval(drop.ci95)],
        ["IoU", _signed(drop.iou_mean), _interval(drop.iou_ci95)],
        ["NSD", _signed(drop.nsd_mean), _interval(drop.nsd_ci95)],
    ]
    found = [_table(["drop (baseline minus exported)", "mean", "95 % interval"], rows)]
    if drop.ci95 is None and drop.dice_mean is not None:
        found.append(
            f"No interval can be given: it is drawn from the differences between cases, and there "
            f"{'is only one case' if labelled == 1 else 'are not two cases'} with scores of both models."
        )
    if drop.worst_case is not None:
        worst = drop.worst_case
        found.append(f"Largest drop in one class of one case: {worst.drop:+.4f} Dice ({worst.label} in {worst.case}).")
    return found


def _speed(report: Report) -> list[str]:
    rows = []
    if report.latency is not None:
        rows += _latency(report.latency)
    if report.end_to_end is not None:
        rows.append(["one case, image to labels (median)", f"{report.end_to_end.case_s:.2f} s"])
    if report.peak_memory_mb is not None:
        rows.append(["peak memory of the process", f"{report.peak_memory_mb:.0f} MB"])
    if report.size_mb is not None:
        rows.append(["size of the engine", f"{report.size_mb:.1f} MB"])
    return ["## Speed and size", _table(["", "measured"], rows)] if rows else []


def _latency(latency: Latency) -> list[list[str]]:
    patch = "×".join(map(str, latency.patch))
    threads = "" if latency.threads is None else f", {_count(latency.threads, 'thread')}"
    return [
        [f"one {patch} patch (median of {len(latency.rounds_ms)}{threads})", f"{latency.p50_ms:.1f} ms"],
        ["90th and 99th percentile", f"{latency.p90_ms:.1f} ms, {latency.p99_ms:.1f} ms"],
        ["first call", f"{latency.first_ms:.1f} ms"],
        ["patches per second", f"{latency.patches_per_s:.2f}"],
    ]


def _layers(layers: Layers) -> list[str]:
    counts = [[precision, str(count)] for precision, count in layers.counts_by_precision.items()]
    found = ["## Layers", _table(["precision", "layers"], counts)]
    if layers.fallbacks:
        rows = [[f"`{layer.name}`", layer.asked, layer.got, layer.reason] for layer in layers.fallbacks]
        found += ["Layers that do not run as asked:", _table(["layer", "asked", "got", "reason"], rows)]
    return found


def _control(control: Control) -> list[str]:
    rows = [
        [
            str(trial.float_layers),
            _score(trial.drop),
            _score(trial.upper),
            _score(trial.worst_case),
            "passed" if trial.passed else "failed",
        ]
        for trial in sorted(control.trials, key=lambda trial: trial.float_layers)
    ]
    kept = ", ".join(f"`{name}`" for name in control.float_layers) or "none"
    end = "" if control.reached else " The gate was not reached; this is the best that was found."
    return [
        "## Accuracy control",
        f"Allowed drop of {control.limits.metric}: {_limits(control.limits)}. Layers kept in float: {kept}.{end}",
        _table(["layers in float", "mean drop", "upper end of the 95 % interval", "worst case", "gate"], rows),
    ]


def _limits(limits: Limits) -> str:
    parts = [("mean", limits.mean), ("any class", limits.per_class), ("any case", limits.per_case)]
    return ", ".join(f"{what} {_score(limit)}" for what, limit in parts if limit is not None)


def _cases(report: Report) -> list[str]:
    rows = []
    for case in report.per_case:
        agreement = _percent(case.voxel_agreement_foreground)
        seconds = f"{case.seconds:.2f} s"
        if case.dice is None:
            rows.append([case.case, "", "-", "-", "-", agreement, seconds])
            continue
        for label, dice in case.dice.items():
            before = None if case.baseline_dice is None else case.baseline_dice[label]
            nsd = None if case.nsd is None else case.nsd[label]
            rows.append([case.case, label, _score(before), _score(dice), _score(nsd), agreement, seconds])
    if report.classified:
        answers = [
            [
                c.case,
                c.reference or "-",
                c.baseline or "-",
                c.found,
                _score(c.probabilities[c.found]),
                f"{c.seconds:.2f} s",
            ]
            for c in report.classified
        ]
        head = ["case", "reference", "baseline", "exported", "probability", "time"]
        return ["## Cases", _table(head, answers)]
    head = ["case", "class", "Dice, baseline", "Dice, exported", "NSD, exported", "agreement in the foreground", "time"]
    return ["## Cases", _table(head, rows)] if rows else []


def _environment(where: Environment) -> list[str]:
    cores = f"{where.usable_cores} of {_count(where.logical_cores, 'logical core')}"
    rows = [
        ["date", where.date],
        ["system", where.platform],
        ["processor", f"{where.cpu}, {cores}" + (f", {' '.join(where.isa)}" if where.isa else "")],
        ["memory", f"{where.memory_gb:.1f} GB"],
        ["Python", where.python],
        *([name, version] for name, version in where.packages.items()),
    ]
    return ["## Environment", _table(["", "value"], rows)]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Names come from files: a pipe or a line break would break the table."""
    return " ".join(text.split()).replace("|", "\\|")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _interval(value: tuple[float, float] | None) -> str:
    return "not available" if value is None else f"{value[0]:+.4f} to {value[1]:+.4f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
