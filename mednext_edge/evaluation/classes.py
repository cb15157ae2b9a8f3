"""How well a classifier tells whole images apart: accuracy, area under the ROC curve, confusion."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mednext_edge.registry import Registry

Probabilities = NDArray[np.float64]
"""[cases, classes]"""
Classes = NDArray[np.intp]
"""[cases], 0..classes-1"""

SAMPLES = 1_000


@dataclass(frozen=True)
class ClassMetric:
    """A figure of merit of a classifier over all cases.

    Attributes:
        title: for tables.
        value: (probabilities, reference) -> 0..1, or NaN.
    """

    title: str
    value: Callable[[Probabilities, Classes], float]


CLASS_METRICS: Registry[ClassMetric] = Registry("metric of a classification")


def accuracy(probabilities: Probabilities, reference: Classes) -> float:
    """Share of the cases whose most probable class is theirs; NaN without cases."""
    return float((probabilities.argmax(1) == reference).mean()) if len(reference) else math.nan


def auc(probabilities: Probabilities, reference: Classes) -> float:
    """Mean over the classes of `auc_of`, each against the rest; NaN where no class has both."""
    found = [auc_of(probabilities[:, c], reference == c) for c in range(probabilities.shape[1])]
    kept = [value for value in found if math.isfinite(value)]
    return math.fsum(kept) / len(kept) if kept else math.nan


def auc_of(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Probability that a positive case scores above a negative one, ties counting half (Mann and Whitney 1947).

    NaN where one of the two is missing.
    """
    from scipy.stats import rankdata

    count = int(positive.sum())
    others = len(positive) - count
    if not count or not others:
        return math.nan
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


CLASS_METRICS.add("accuracy", ClassMetric("accuracy", accuracy))
CLASS_METRICS.add("auc", ClassMetric("AUC", auc))


def confusion(probabilities: Probabilities, reference: Classes) -> NDArray[np.intp]:
    """Cases by reference (rows) and most probable class (columns), [classes, classes]."""
    classes = probabilities.shape[1]
    counts = np.bincount(reference * classes + probabilities.argmax(1), minlength=classes**2)
    return counts.reshape(classes, classes)


def sensitivity(counts: NDArray[np.intp]) -> NDArray[np.float64]:
    """Share of each class's cases that were found, [classes]; NaN for a class without cases."""
    with np.errstate(invalid="ignore"):
        found: NDArray[np.float64] = counts.diagonal() / counts.sum(1)
    return found


def f1(counts: NDArray[np.intp]) -> NDArray[np.float64]:
    """Harmonic mean of sensitivity and precision of each class, [classes]; NaN for a class that does not occur."""
    with np.errstate(invalid="ignore"):
        found: NDArray[np.float64] = 2 * counts.diagonal() / (counts.sum(0) + counts.sum(1))
    return found


def drop_interval(
    metric: ClassMetric,
    baseline: Probabilities,
    exported: Probabilities,
    reference: Classes,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Paired bootstrap percentile interval of baseline minus exported, over the cases; None with fewer than two."""
    cases = len(reference)
    if cases < 2:
        return None
    generator = np.random.default_rng(seed)
    drops = []
    for _ in range(SAMPLES):
        drawn = generator.integers(cases, size=cases)
        one, other = (metric.value(found[drawn], reference[drawn]) for found in (baseline, exported))
        drops.append(one - other)
    if not np.isfinite(drops).any():
        return None
    tail = 100 * (1 - confidence) / 2
    low, high = np.nanpercentile(drops, [tail, 100 - tail])
    return float(low), float(high)
