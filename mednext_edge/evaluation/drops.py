"""How far a model falls behind another in one metric: mean, each class, worst case."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic import ConfigDict

from mednext_edge.evaluation.bootstrap import Table, mean_drop, paired_interval
from mednext_edge.task import Frozen

Score = float | None


class Part(Frozen):
    """Base of the report's parts: NaN and infinity are no JSON, and must not get in."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class WorstCase(Part):
    """Where the exported model loses most against the baseline."""

    case: str
    label: str
    drop: float


class ClassDrop(Part):
    """Of one class, a mean over cases; `ci95` is a bootstrap interval over the cases, None with fewer than two."""

    mean: Score
    ci95: tuple[float, float] | None


class MetricDrop(Part):
    """Baseline minus exported in one metric; the mean over classes of the mean over cases; `ci95` as in `ClassDrop`."""

    mean: Score
    ci95: tuple[float, float] | None
    per_class: dict[str, ClassDrop]
    worst_case: WorstCase | None


def metric_drop(before: Table, after: Table, cases: Sequence[str], names: Sequence[str]) -> MetricDrop:
    """The drop from one table of scores to another.

    Args:
        before, after: [cases, classes] scores of the same cases; NaN where there is none.
        cases, names: of the rows and the columns.
    """
    classes = [[i] for i in range(len(names))]
    return MetricDrop(
        mean=_number(mean_drop(before, after)),
        ci95=paired_interval(before, after),
        per_class={
            name: ClassDrop(
                mean=_number(mean_drop(before[:, i], after[:, i])), ci95=paired_interval(before[:, i], after[:, i])
            )
            for name, i in zip(names, classes, strict=True)
        },
        worst_case=_worst(cases, before - after, names),
    )


def _worst(cases: Sequence[str], drops: Table, names: Sequence[str]) -> WorstCase | None:
    if not np.isfinite(drops).any():
        return None
    case, label = np.unravel_index(int(np.nanargmax(drops)), drops.shape)
    return WorstCase(case=cases[int(case)], label=names[int(label)], drop=float(drops[case, label]))


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
