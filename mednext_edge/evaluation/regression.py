"""Whether something became slower: a decision that waits until the pairs of timings carry it.

After some pairs the interval of the ratio is looked at. It is decided when the interval lies on one side of the gate;
if not, as many pairs again are taken, until there are too many or time is up. Every look costs some of the allowed
error (Bonferroni), so that looking again and again does not make false alarms.

Before that, two processes of the very same thing are compared in the same way. A machine where these cannot be shown to
be equally fast, within the gate, is too noisy for a verdict, and gets none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mednext_edge.errors import UsageError
from mednext_edge.evaluation.ratios import Logs, Ratio, median_ratio

Draw = Callable[[int], Logs]
"""Takes so many new pairs; returns log(time of this / time of the reference) of each, fewer when time is up."""
Judge = Callable[[Ratio, float], "Verdict"]
Verdict = Literal["slower", "passed", "undecided"]
"""Whether a ratio is above the gate, not above it, or may be either."""


@dataclass(frozen=True)
class Rules:
    """When a slow-down counts, and how long to look for it.

    Attributes:
        gate: largest slow-down that passes, as a fraction of the reference's time.
        confidence: that a verdict is right, all looks together.
        first: pairs before the first look.
        looks: how often at most; the pairs double from one to the next.
    """

    gate: float = 0.05
    confidence: float = 0.95
    first: int = 20
    looks: int = 6

    def __post_init__(self) -> None:
        if not (0 < self.gate < 1 and 0.5 < self.confidence < 1 and self.first >= 4 and self.looks >= 1):
            raise UsageError(
                f"found a gate of {self.gate}, a confidence of {self.confidence}, {self.first} pairs and {self.looks} "
                "looks; expected a gate between 0 and 1, a confidence between 0.5 and 1, 4 pairs, 1 look or more"
            )

    @property
    def level(self) -> float:
        """Confidence of the interval at each look."""
        return 1 - (1 - self.confidence) / self.looks


@dataclass(frozen=True)
class Finding:
    """What pairs came to: the verdict, the ratio at the last look, and the log ratios themselves."""

    verdict: Verdict
    ratio: Ratio
    logs: tuple[float, ...]


def judge(ratio: Ratio, gate: float) -> Verdict:
    """Slower only when the whole interval is above the gate."""
    if ratio.low > 1 + gate:
        return "slower"
    return "passed" if ratio.high < 1 + gate else "undecided"


def judge_noise(ratio: Ratio, gate: float) -> Verdict:
    """Of two that are the same: passed when the whole interval is within the gate, to both sides."""
    if max(ratio.low, 1 / ratio.high) > 1 + gate:
        return "slower"
    return "passed" if max(ratio.high, 1 / ratio.low) < 1 + gate else "undecided"


def decide(draw: Draw, rules: Rules, judged: Judge = judge) -> Finding:
    """Take pairs until they carry a verdict.

    Args:
        draw: takes pairs; when it returns fewer than asked for, that was the last look.
        judged: of the interval and the gate.

    Raises:
        ValueError: not one pair was taken.
    """
    logs: Logs = np.empty(0)
    verdict: Verdict = "undecided"
    for look in range(rules.looks):
        wanted = rules.first * 2**look - len(logs)
        new = draw(wanted)
        logs = np.concatenate([logs, new])
        ratio = median_ratio(logs, confidence=rules.level, seed=look)
        # An interval of a few pairs is too narrow: such a one may not decide.
        verdict = judged(ratio, rules.gate) if len(logs) >= rules.first else "undecided"
        if verdict != "undecided" or len(new) < wanted:
            break
    return Finding(verdict, ratio, tuple(map(float, logs)))


def most_pairs(rules: Rules) -> int:
    """How many pairs `decide` takes at most."""
    return rules.first << (rules.looks - 1)


def resolution(finding: Finding) -> float:
    """Half the width of the interval, as a fraction: what a slow-down must exceed the gate by to be found."""
    return math.sqrt(finding.ratio.high / finding.ratio.low) - 1
