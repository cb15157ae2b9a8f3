"""Two engines timed in turns until it is clear whether one is faster, or time is up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mednext_edge.evaluation.duel import Pairs
from mednext_edge.evaluation.ratios import Ratio
from mednext_edge.evaluation.regression import Judge, Rules, Verdict, decide
from mednext_edge.runtime.session import Array, Session

WARMUP = 2
LOOK = 3.0
"""Seconds that two engines are timed for at least, once they are made: making them takes most of a short budget."""


def milliseconds(session: Session, x: Array) -> float:
    """Of one call."""
    start = time.perf_counter()
    session.run(x)
    return (time.perf_counter() - start) * 1e3


@dataclass(frozen=True)
class Watch:
    """What time is told by: milliseconds of one call, and a clock in seconds."""

    call: Callable[[Session, Array], float] = milliseconds
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True)
class Race:
    """What the pairs came to: time of this over that of the reference with its interval, and the medians."""

    verdict: Verdict
    ratio: tuple[float, float, float]
    this_ms: float
    reference_ms: float
    pairs: int


def faster(ratio: Ratio, gate: float) -> Verdict:
    """Passed when the whole interval says that this is faster by the gate."""
    if ratio.high < 1 - gate:
        return "passed"
    return "slower" if ratio.low > 1 - gate else "undecided"


def race(
    this: Session,
    reference: Session,
    x: Array,
    rules: Rules,
    judged: Judge,
    *,
    until: float,
    watch: Watch,
    least: float = 0.0,
) -> Race | None:
    """Time both in pairs.

    Args:
        x: that both take.
        until: time of the clock after which no further pair begins.
        least: milliseconds of one timing; shorter calls are made several times.

    Returns:
        None when there was no time for the pairs of a first look.
    """
    first = min(watch.call(side, x) for _ in range(WARMUP) for side in (this, reference))
    sides = _Timed(this, x, watch), _Timed(reference, x, watch)
    calls = max(1, math.ceil(least / max(first, 1e-3)))
    generator = np.random.default_rng(0)
    pairs = Pairs(*sides, calls=calls, until=until, generator=generator, progress=lambda done: None, clock=watch.clock)
    finding = decide(pairs.draw, rules, judged)
    if len(finding.logs) < rules.first:  # too few to say anything
        return None
    ratio = finding.ratio
    return Race(
        finding.verdict,
        (ratio.value, ratio.low, ratio.high),
        float(np.median(pairs.this_ms)),
        float(np.median(pairs.reference_ms)),
        len(finding.logs),
    )


class _Timed:
    def __init__(self, session: Session, x: Array, watch: Watch) -> None:
        self.session, self.x, self.watch = session, x, watch

    def time(self, calls: int = 1) -> float:
        return sum(self.watch.call(self.session, self.x) for _ in range(calls)) / calls
