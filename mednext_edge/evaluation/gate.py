"""Whether an exported model is accurate enough to be deployed."""

from __future__ import annotations

from typing import Literal

from mednext_edge.bundle import Gate
from mednext_edge.evaluation.drops import MetricDrop
from mednext_edge.evaluation.limits import Limits
from mednext_edge.evaluation.metrics import METRICS
from mednext_edge.evaluation.report import Report
from mednext_edge.task import Frozen


class GateResult(Frozen):
    """The decision and what it rests on; `upper` is the upper end of the mean drop's 95 % interval, if there is one."""

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


def check_gate(report: Report, limits: Limits = Limits()) -> GateResult:  # noqa: B008 (frozen)
    """Compare the drop with what is allowed, as `Limits.violations`.

    A model that finds nothing but background, or one class alone, fails whatever its drop, for a baseline that finds
    nothing either would hide it. Without a reference or a baseline there is no drop and the gate is `not_run`.

    Raises:
        UnknownNameError, UsageError: as `Limits.check`.
    """
    limits.check()
    if report.classification is not None or report.accuracy is not None:
        limits = limits.of("segmentation" if report.classification is None else "classification")
    metric = limits.metric or next(iter(METRICS))

    def result(
        status: Literal["passed", "failed", "not_run"], reason: str, drop: MetricDrop | None = None
    ) -> GateResult:
        return GateResult(
            status=status,
            metric=metric,
            max_drop=limits.mean,
            drop=None if drop is None else drop.mean,
            upper=drop.ci95[1] if drop and drop.ci95 else None,
            reason=reason,
        )

    def judged(drop: MetricDrop) -> GateResult:
        violations = limits.violations(drop)
        reason = "; ".join(violations) or limits.summary(drop)
        if drop.ci95 is None:
            reason += "; decided on the mean, for fewer than two cases give no interval"
        return result("failed" if violations else "passed", reason, drop)

    if report.classification is not None:
        drop = report.classification.drop.get(metric)
        if report.classification.collapsed:
            return result("failed", "the model finds one class in every case", drop)
        if drop is None or drop.mean is None:
            return result("not_run", "a drop needs reference classes and a baseline")
        return judged(drop)
    accuracy = report.accuracy
    if accuracy is None:
        return result("not_run", "accuracy was not measured")
    drop = None if accuracy.drop is None else accuracy.drop.in_metric(metric)
    if accuracy.collapsed:
        return result("failed", "the model finds nothing but background in every case", drop)
    if accuracy.baseline is None or accuracy.exported is None:
        return result("not_run", "a drop needs reference labels and a baseline")
    if drop is None or drop.mean is None:
        if accuracy.baseline.dice_mean is None and accuracy.exported.dice_mean is not None:
            return result("failed", "the model finds structures where neither reference nor baseline has any")
        return result("not_run", f"no class of any case has a {METRICS[metric].title} of both models")
    return judged(drop)
