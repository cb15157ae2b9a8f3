"""A classifier against the reference classes and against the model it was made from."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mednext_edge.data.dataset import Case
from mednext_edge.environment import environment
from mednext_edge.errors import DataError
from mednext_edge.evaluation import classes
from mednext_edge.evaluation.classes import CLASS_METRICS, Classes, Probabilities
from mednext_edge.evaluation.drops import MetricDrop
from mednext_edge.evaluation.memory import PeakMemory
from mednext_edge.evaluation.report import (
    Classification,
    ClassifiedCase,
    ClassScores,
    EndToEnd,
    Report,
)
from mednext_edge.runtime.predictor import Predictor
from mednext_edge.runtime.session import Session


@dataclass(frozen=True)
class _Answer:
    case: str
    reference: int | None
    seconds: float
    exported: Probabilities
    baseline: Probabilities | None


def classified(exported: Predictor, baseline: Predictor | None, cases: Sequence[Case], memory: PeakMemory) -> Report:
    """Classify every case and measure accuracy, AUC, agreement, time and memory.

    Raises:
        DataError: a case of a class that the network does not know, or an image that does not fit it.
    """
    labels = exported.session.task.labels
    answers = [_answer(case, exported, baseline, labels, memory) for case in cases]
    return Report(
        classification=_summary(answers, labels, exported.session, None if baseline is None else baseline.session),
        classified=tuple(_described(answer, labels) for answer in answers),
        end_to_end=EndToEnd(case_s=float(np.median([answer.seconds for answer in answers]))),
        peak_memory_mb=memory.mb,
        environment=environment(),
    )


def _answer(
    case: Case, exported: Predictor, baseline: Predictor | None, labels: Mapping[str, int], memory: PeakMemory
) -> _Answer:
    if case.category is not None and case.category not in labels.values():
        raise DataError(f"case {case.name} is of class {case.category}; the model knows {dict(labels)}")
    image = case.image()
    start = time.perf_counter()
    with memory:
        found = exported.classify(image).astype(np.float64)
    seconds = time.perf_counter() - start
    other = None if baseline is None else baseline.classify(image).astype(np.float64)
    return _Answer(case.name, case.category, seconds, found, other)


def _summary(
    answers: Sequence[_Answer], labels: Mapping[str, int], session: Session, other: Session | None
) -> Classification:
    names = sorted(labels, key=lambda name: labels[name])
    judged = [answer for answer in answers if answer.reference is not None]
    reference = np.array([answer.reference for answer in judged], dtype=np.intp)
    found = np.array([answer.exported for answer in judged]).reshape(len(judged), len(names))
    before = np.array([a.baseline for a in judged if a.baseline is not None]).reshape(-1, len(names))
    compared = other is not None and len(judged) > 0
    same = [a.exported.argmax() == a.baseline.argmax() for a in answers if a.baseline is not None]
    expected = {_expected(answer) for answer in answers} - {None}
    return Classification(
        cases=len(answers),
        labelled=len(judged),
        labels=tuple(names),
        baseline=_scores(before, reference, names, other) if compared and other is not None else None,
        exported=_scores(found, reference, names, session) if judged else None,
        drop=_drops(before, found, reference) if compared else {},
        agreement=float(np.mean(same)) if same else None,
        collapsed=len(expected) > 1 and len({int(a.exported.argmax()) for a in answers}) == 1,
    )


def _expected(answer: _Answer) -> int | None:
    """The class of a case; without a reference the baseline's, if there is one."""
    if answer.reference is not None or answer.baseline is None:
        return answer.reference
    return int(answer.baseline.argmax())


def _scores(found: Probabilities, reference: Classes, names: Sequence[str], session: Session) -> ClassScores:
    counts = classes.confusion(found, reference)

    def by_name(values: Sequence[float]) -> dict[str, float | None]:
        return {name: _number(float(value)) for name, value in zip(names, values, strict=True)}

    return ClassScores(
        precision=session.precision,
        provider=session.provider,
        metrics={name: _number(metric.value(found, reference)) for name, metric in CLASS_METRICS.items()},
        auc_per_class=by_name([classes.auc_of(found[:, c], reference == c) for c in range(len(names))]),
        sensitivity_per_class=by_name(list(classes.sensitivity(counts))),
        f1_per_class=by_name(list(classes.f1(counts))),
        confusion=tuple(tuple(int(n) for n in row) for row in counts),
    )


def _drops(before: Probabilities, found: Probabilities, reference: Classes) -> dict[str, MetricDrop]:
    return {
        name: MetricDrop(
            mean=_number(metric.value(before, reference) - metric.value(found, reference)),
            ci95=classes.drop_interval(metric, before, found, reference),
            per_class={},
            worst_case=None,
        )
        for name, metric in CLASS_METRICS.items()
    }


def _described(answer: _Answer, labels: Mapping[str, int]) -> ClassifiedCase:
    by_value = {value: name for name, value in labels.items()}
    return ClassifiedCase(
        case=answer.case,
        seconds=answer.seconds,
        reference=None if answer.reference is None else by_value[answer.reference],
        found=by_value[int(answer.exported.argmax())],
        baseline=None if answer.baseline is None else by_value[int(answer.baseline.argmax())],
        probabilities={name: float(answer.exported[value]) for name, value in labels.items()},
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
