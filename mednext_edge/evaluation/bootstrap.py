"""How sure a mean drop is, given the cases at hand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAMPLES = 10_000
_BLOCK = 1 << 22  # weights held at a time

Table = NDArray[np.float64]


def class_mean(values: Table) -> float:
    """Mean over classes of the mean over cases of [cases, classes]; NaN entries are left out, NaN if nothing is left.

    This is nnU-Net's `foreground_mean`.
    """
    return float(_class_means(np.ones((1, len(values))), values)[0])


def mean_drop(baseline: Table, exported: Table) -> float:
    """`class_mean` of the baseline minus that of the exported model."""
    return class_mean(baseline) - class_mean(exported)


def paired_interval(
    baseline: Table, exported: Table, *, confidence: float = 0.95, samples: int = SAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """Bootstrap percentile interval of `mean_drop` (Efron and Tibshirani 1993, chapter 13).

    Cases are drawn with replacement, the same ones for both models, so that what makes a case hard
    cancels. With few cases (under about ten) percentile intervals are known to be too narrow.

    Args:
        baseline, exported: [cases, classes] scores of the same cases; NaN where there is none.

    Returns:
        (low, high), or None with fewer than two cases that have a score of both models.
    """
    if baseline.shape != exported.shape or baseline.ndim != 2:
        raise ValueError(f"found tables of {baseline.shape} and {exported.shape}; expected one [cases, classes] shape")
    scored = np.isfinite(baseline).any(1) & np.isfinite(exported).any(1)
    baseline, exported = baseline[scored], exported[scored]
    cases = len(baseline)
    if cases < 2:
        return None
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // cases)
    drops = []
    for start in range(0, samples, block):
        # How often each case was drawn: the same as drawing indices, but the means become one product.
        size = min(block, samples - start)
        weights = generator.multinomial(cases, np.full(cases, 1 / cases), size=size).astype(np.float64)
        drops.append(_class_means(weights, baseline) - _class_means(weights, exported))
    tail = 100 * (1 - confidence) / 2
    low, high = np.nanpercentile(np.concatenate(drops), [tail, 100 - tail])
    return float(low), float(high)


def _class_means(weights: Table, values: Table) -> Table:
    """[draws, cases] weights, [cases, classes] values -> [draws]."""
    there = np.isfinite(values)
    counts = weights @ there.astype(np.float64)
    sums = weights @ np.where(there, values, 0.0)
    filled = counts > 0
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=filled)
    classes = filled.sum(1)
    result: Table = np.divide(means.sum(1), classes, out=np.full(len(weights), np.nan), where=classes > 0)
    return result
