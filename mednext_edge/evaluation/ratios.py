"""How much longer one of two takes, out of pairs of timings, and how sure that is.

A pair is one timing of each, one right after the other, so that what slows down the machine for longer than a pair
cancels in its log ratio. The median of many log ratios does not follow the tails that a shared machine has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4_000
_BLOCK = 1 << 22  # numbers drawn at a time

Logs = NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """How many times as long as the other; `low` and `high` are a bootstrap interval, of 95 % unless said otherwise."""

    value: float
    low: float
    high: float


def median_ratio(logs: Logs, *, confidence: float = 0.95, seed: int = 0) -> Ratio:
    """The median of log ratios, undone, with its bootstrap percentile interval (Efron and Tibshirani 1993, chapter 13).

    Args:
        logs: [pairs] log(time of one / time of the other), at least one.

    Raises:
        ValueError: there is no pair, or one that is not finite.
    """
    if logs.ndim != 1 or not len(logs) or not np.isfinite(logs).all():
        raise ValueError(f"found log ratios of the shape {logs.shape}; expected at least one, all finite")
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(logs))
    medians = []
    for start in range(0, RESAMPLES, block):
        drawn = generator.integers(len(logs), size=(min(block, RESAMPLES - start), len(logs)))
        medians.append(np.median(logs[drawn], axis=1))
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.concatenate(medians), [tail, 100 - tail])
    return Ratio(value=float(np.exp(np.median(logs))), low=float(np.exp(low)), high=float(np.exp(high)))
