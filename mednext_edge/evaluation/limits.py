"""What an exported model may lose."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mednext_edge.errors import UsageError
from mednext_edge.evaluation.drops import MetricDrop
from mednext_edge.evaluation.metrics import check_metric, choose_metric, title_of
from mednext_edge.task import Frozen


class Limits(Frozen):
    """What a model may lose against its baseline.

    Attributes:
        metric: a name in METRICS, or of a classification in CLASS_METRICS; None is the first of them, see `of`.
        mean: largest drop of the mean over cases and classes, 0..1 in units of the metric.
        per_class: largest drop of each class's mean over the cases; None for no limit.
        per_case: largest drop of any class in any case; None for no limit.
    """

    metric: str | None = None
    mean: float = 0.005
    per_class: float | None = None
    per_case: float | None = None

    def of(self, kind: str) -> Limits:
        """The same with a metric that a kind of network has.

        Raises:
            UnknownNameError: it has no such metric.
        """
        return self.model_copy(update={"metric": choose_metric(kind, self.metric)})

    def check(self) -> None:
        """Refuse what cannot be a limit.

        Raises:
            UnknownNameError: no such metric.
            UsageError: a limit out of range.
        """
        check_metric(self.metric)
        for flag, limit in (
            ("--max-drop", self.mean),
            ("--max-class-drop", self.per_class),
            ("--max-case-drop", self.per_case),
        ):
            if limit is not None and not (math.isfinite(limit) and 0 <= limit <= 1):
                raise UsageError(f"found {flag} {limit}; expected a fraction from 0 to 1, such as 0.005")

    def violations(self, drop: MetricDrop) -> list[str]:
        """What exceeds a limit, in words; empty when nothing does.

        Means are decided on the upper end of their 95 % interval: with cases like these, a larger drop is unlikely.
        Where too few cases give no interval, the drop itself decides.
        """
        return [text for text, exceeded in self._comparisons(drop) if exceeded]

    def summary(self, drop: MetricDrop) -> str:
        """Every comparison in words."""
        return "; ".join(text for text, _ in self._comparisons(drop))

    def _comparisons(self, drop: MetricDrop) -> Iterator[tuple[str, bool]]:
        title = title_of(self.metric)
        if drop.mean is not None:
            yield _compared(title, drop.mean, drop.ci95, self.mean)
        if self.per_class is not None:
            for name, found in drop.per_class.items():
                if found.mean is not None:
                    yield _compared(f"{title} of {name}", found.mean, found.ci95, self.per_class)
        worst = drop.worst_case
        if self.per_case is not None and worst is not None:
            what = f"{title} of {worst.label} in the worst case, {worst.case},"
            text = f"{what} drops by {worst.drop:.4f}, allowed are {self.per_case:.4f}"
            yield text, worst.drop > self.per_case


def _compared(what: str, mean: float, interval: tuple[float, float] | None, limit: float) -> tuple[str, bool]:
    decisive, certain = (mean, "") if interval is None else (interval[1], f" (95 % interval to {interval[1]:.4f})")
    return f"{what} drops by {mean:.4f}{certain}, allowed are {limit:.4f}", decisive > limit
