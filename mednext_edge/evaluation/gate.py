"""Whether an exported model is accurate enough to be deployed."""

from __future__ import annotations

import math
from typing import Literal

from mednext_edge.bundle import Gate
from mednext_edge.errors import UsageError
from mednext_edge.evaluation.metrics import METRICS
from mednext_edge.evaluation.report import Report
from mednext_edge.task import Frozen


class GateResult(Frozen):
    """The decision and what it rests on; `upper` is the upper end of the drop's 95 % interval, if there is one."""

    status: Literal["passed", "failed", "not_run"]
    metric: str
    max_drop: float
    drop: float | None
    upper: float | None
    reason: str

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def for_manifest(self) -> Gate:
        return Gate(status=self.status, metric=self.metric, max_drop=self.max_drop, drop=self.drop)


def check_gate(report: Report, metric: str = "dice", max_drop: float = 0.005) -> GateResult:
    """Compare the mean drop over cases and classes with what is allowed.

    Decided on the upper end of the drop's 95 % interval: with cases like these, a larger drop is unlikely. One case
    gives no interval; then the mean decides, and the reason says so. A model that finds nothing but background
    fails whatever its drop, for a baseline that finds nothing either would hide it. Without a reference or a baseline
    there is no drop and the gate is `not_run`.

    Args:
        metric: a name in METRICS.
        max_drop: 0..1, in units of the metric.

    Raises:
        UsageError: no such metric, or `max_drop` out of range.
    """
    title = METRICS[metric].title
    if not (math.isfinite(max_drop) and 0 <= max_drop <= 1):
        raise UsageError(f"found --max-drop {max_drop}; expected a fraction from 0 to 1, such as 0.005")

    def result(
        status: Literal["passed", "failed", "not_run"],
        reason: str,
        drop: float | None = None,
        interval: tuple[float, float] | None = None,
    ) -> GateResult:
        upper = interval[1] if interval else None
        return GateResult(status=status, metric=metric, max_drop=max_drop, drop=drop, upper=upper, reason=reason)

    accuracy = report.accuracy
    if accuracy is None:
        return result("not_run", "accuracy was not measured")
    drop, interval = None, None
    if accuracy.drop is not None:
        drop = accuracy.drop.dice_mean if metric == "dice" else accuracy.drop.nsd_mean
        interval = accuracy.drop.ci95 if metric == "dice" else accuracy.drop.nsd_ci95
    if accuracy.collapsed:
        return result("failed", "the model finds nothing but background in every case", drop, interval)
    if accuracy.baseline is None or accuracy.exported is None:
        return result("not_run", "a drop needs reference labels and a baseline")
    if drop is None:
        if accuracy.baseline.dice_mean is None and accuracy.exported.dice_mean is not None:
            return result("failed", "the model finds structures where neither reference nor baseline has any")
        return result("not_run", f"no class of any case has a {title} of both models")
    decisive, certain = (drop, "") if interval is None else (interval[1], f" (95 % interval to {interval[1]:.4f})")
    comparison = f"{title} drops by {drop:.4f}{certain}, allowed are {max_drop:.4f}"
    if interval is None:
        comparison += "; decided on the mean, for fewer than two cases give no interval"
    return result("failed" if decisive > max_drop else "passed", comparison, drop, interval)
