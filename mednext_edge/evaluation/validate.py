"""An exported model against the reference labels and against the model it was made from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mednext_edge.data.dataset import Case
from mednext_edge.data.volume import Volume
from mednext_edge.environment import environment
from mednext_edge.errors import DataError, UsageError
from mednext_edge.evaluation.bootstrap import Table, class_mean
from mednext_edge.evaluation.classify import classified
from mednext_edge.evaluation.drops import metric_drop
from mednext_edge.evaluation.memory import PeakMemory
from mednext_edge.evaluation.metrics import METRICS, Labels, agreement
from mednext_edge.evaluation.report import Accuracy, CaseReport, Drop, EndToEnd, Report, Scores
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.runtime.engines import open as open_session
from mednext_edge.runtime.predictor import Predictor
from mednext_edge.runtime.session import Session

Progress = Callable[[str, int, int], None]
"""Told of progress: (what is being done, steps done, steps in all)."""

ByLabel = Mapping[str, float]


@dataclass(frozen=True)
class Compared:
    """The label maps of one case, for pictures; [Z, Y, X] on the grid of the image."""

    case: str
    image: Volume
    reference: Labels | None
    baseline: Labels | None
    exported: Labels


@dataclass(frozen=True)
class _Row:
    """What is kept of one case: scores are metric -> label -> value, NaN where there is none."""

    case: str
    seconds: float
    baseline_seconds: float | None
    exported: Mapping[str, ByLabel] | None
    baseline: Mapping[str, ByLabel] | None
    agreement: tuple[float, float | None] | None
    expects_foreground: bool
    finds_foreground: bool


def validate(
    model: Session | LoadedModel | str | Path,
    cases: Sequence[Case],
    *,
    baseline: Session | LoadedModel | str | Path | None = None,
    mirror: bool = False,
    step: float | None = None,
    progress: Progress | None = None,
    seen: Callable[[Compared], None] | None = None,
) -> Report:
    """Predict every case and measure Dice, IoU and surface Dice, or accuracy and AUC, agreement, time and memory.

    Cases are read one at a time. Those without labels count for agreement and time only.

    Args:
        model: the exported model: a bundle's folder, or an open session, which stays open.
        cases: at least one.
        baseline: the model before quantisation, for the drop and the agreement; a loaded model runs in PyTorch, FP32.
        mirror: test-time augmentation along the task's mirror axes.
        step: step of the sliding window as a fraction of the patch; None takes the task's.
        progress: told after every patch; a prediction counts as 100 steps, whatever its size.
        seen: given every case's label maps, for pictures.

    Raises:
        DataError: no cases; a reference of another shape than the image, or with values that are not the task's.
        UsageError: the baseline has other labels.
    """
    if not cases:
        raise DataError("no cases to validate on; expected at least one image, with labels for Dice")
    with ExitStack() as stack:
        session = _session(model, stack)
        other = None if baseline is None else _session(baseline, stack)
        labels = session.task.labels
        if other is not None and other.task.labels != labels:
            raise UsageError(f"the baseline's labels {other.task.labels} are not those of the exported model: {labels}")
        if other is not None and other.task.masks != session.task.masks:
            raise UsageError(
                f"the baseline's regions {other.task.masks} are not those of the exported model: {session.task.masks}"
            )
        kind, before = session.task.model.kind, None if other is None else other.task.model.kind
        if before not in (None, kind):
            raise UsageError(f"the baseline is for {before}, the exported model for {kind}; expected the same")
        ticks = _Ticks(progress, predictions=len(cases) * (1 if other is None else 2))
        run = _Run(
            exported=Predictor(session, step=step, mirror=mirror, progress=ticks.patch),
            baseline=None if other is None else Predictor(other, step=step, mirror=mirror, progress=ticks.patch),
            labels=labels,
            masks=session.task.masks,
            memory=PeakMemory(),
        )
        if kind == "classification":
            return classified(run.exported, run.baseline, cases, run.memory)
        rows = []
        for case in cases:
            row, compared = run.case(case)
            rows.append(row)
            if seen is not None:
                seen(compared)
        return Report(
            accuracy=_accuracy(rows, tuple(session.task.masks), session, other),
            per_case=tuple(_case_report(row) for row in rows),
            end_to_end=EndToEnd(case_s=float(np.median([row.seconds for row in rows]))),
            peak_memory_mb=run.memory.mb,
            environment=environment(),
        )


def _session(model: Session | LoadedModel | str | Path, stack: ExitStack) -> Session:
    """The session itself, or a new one that the stack closes."""
    return model if isinstance(model, Session) else stack.enter_context(open_session(model))


class _Ticks:
    """One progress bar out of many predictions, whose sizes show only when they start."""

    def __init__(self, progress: Progress | None, predictions: int) -> None:
        self._progress = progress
        self._steps = 100 * predictions
        self._before = 0

    def patch(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress("validate", self._before + 100 * done // total, self._steps)
        if done == total:
            self._before += 100


@dataclass(frozen=True)
class _Run:
    """The two predictors and how one case goes through them."""

    exported: Predictor
    baseline: Predictor | None
    labels: Mapping[str, int]
    masks: Mapping[str, tuple[int, ...]]
    memory: PeakMemory

    def case(self, case: Case) -> tuple[_Row, Compared]:
        image = case.image()
        reference = None if case.labels is None else self._reference(case.name, case.labels(), image)
        start = time.perf_counter()
        with self.memory:
            exported = self.exported.predict(image)
        seconds = time.perf_counter() - start
        other, baseline_seconds = None, None
        if self.baseline is not None:
            start = time.perf_counter()
            other = self.baseline.predict(image)
            baseline_seconds = time.perf_counter() - start
        expected = reference if reference is not None else other
        row = _Row(
            case=case.name,
            seconds=seconds,
            baseline_seconds=baseline_seconds,
            exported=self._scores(exported, reference, image.spacing),
            baseline=self._scores(other, reference, image.spacing),
            agreement=None if other is None else agreement(exported, other),
            expects_foreground=expected is not None and bool(expected.any()),
            finds_foreground=bool(exported.any()),
        )
        return row, Compared(case.name, image, reference, other, exported)

    def _reference(self, name: str, volume: Volume, image: Volume) -> Labels:
        if volume.array.shape != image.spatial:
            raise DataError(
                f"case {name}: found labels of shape {volume.array.shape} for an image of {image.spatial} voxels; "
                "expected the same grid"
            )
        found = np.unique(volume.array)
        strange = sorted({int(value) for value in found} - set(self.labels.values()))
        if strange:
            raise DataError(
                f"case {name}: the reference holds the values {strange}; the model knows {dict(self.labels)}. "
                "Map the reference to these values first"
            )
        return volume.array

    def _scores(
        self, prediction: Labels | None, reference: Labels | None, spacing: Sequence[float]
    ) -> dict[str, dict[str, float]] | None:
        if prediction is None or reference is None:
            return None
        masks = {name: (np.isin(prediction, of), np.isin(reference, of)) for name, of in self.masks.items()}
        return {
            metric: {name: entry.value(found, wanted, spacing) for name, (found, wanted) in masks.items()}
            for metric, entry in METRICS.items()
        }


def _accuracy(rows: Sequence[_Row], names: Sequence[str], session: Session, baseline: Session | None) -> Accuracy:
    exported = [row.exported for row in rows if row.exported is not None]
    other = [row.baseline for row in rows if row.baseline is not None]
    agreements = [row.agreement for row in rows if row.agreement is not None]
    expecting = [row for row in rows if row.expects_foreground]
    return Accuracy(
        cases=len(rows),
        labelled=len(exported),
        baseline=_scores_of(baseline, other, names) if baseline is not None and other else None,
        exported=_scores_of(session, exported, names) if exported else None,
        drop=_drop(rows, other, exported, names) if other else None,
        voxel_agreement=_mean(everywhere for everywhere, _ in agreements),
        voxel_agreement_foreground=_mean(part for _, part in agreements if part is not None),
        collapsed=bool(expecting) and not any(row.finds_foreground for row in expecting),
    )


def _scores_of(session: Session, scores: Sequence[Mapping[str, ByLabel]], names: Sequence[str]) -> Scores:
    tables = {metric: _table(scores, metric, names) for metric in METRICS}
    per_class = {
        metric: {name: _number(class_mean(table[:, [i]])) for i, name in enumerate(names)}
        for metric, table in tables.items()
    }
    found: dict[str, Any] = {f"{metric}_mean": _number(class_mean(table)) for metric, table in tables.items()}
    found |= {f"{metric}_per_class": scores for metric, scores in per_class.items()}
    return Scores(
        precision=session.precision,
        provider=session.provider,
        **found,
    )


def _drop(
    rows: Sequence[_Row],
    baseline: Sequence[Mapping[str, ByLabel]],
    exported: Sequence[Mapping[str, ByLabel]],
    names: Sequence[str],
) -> Drop:
    cases = [row.case for row in rows if row.exported is not None]
    return Drop.of(
        **{m: metric_drop(_table(baseline, m, names), _table(exported, m, names), cases, names) for m in METRICS}
    )


def _table(scores: Sequence[Mapping[str, ByLabel]], metric: str, names: Sequence[str]) -> Table:
    """[cases, classes]"""
    return np.array([[case[metric][name] for name in names] for case in scores], dtype=np.float64)


def _case_report(row: _Row) -> CaseReport:
    def scores(source: Mapping[str, ByLabel] | None, metric: str) -> dict[str, float | None] | None:
        return None if source is None else {name: _number(value) for name, value in source[metric].items()}

    everywhere, foreground = row.agreement or (None, None)
    return CaseReport(
        case=row.case,
        seconds=row.seconds,
        baseline_seconds=row.baseline_seconds,
        **{metric: scores(row.exported, metric) for metric in METRICS},
        **{f"baseline_{metric}": scores(row.baseline, metric) for metric in METRICS},
        voxel_agreement=everywhere,
        voxel_agreement_foreground=foreground,
    )


def _mean(values: Iterable[float]) -> float | None:
    kept = list(values)
    return math.fsum(kept) / len(kept) if kept else None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
