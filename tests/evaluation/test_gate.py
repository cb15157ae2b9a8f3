from __future__ import annotations

import math
from typing import Any

import pytest

from mednext_edge.errors import UnknownNameError, UsageError
from mednext_edge.evaluation.drops import ClassDrop, MetricDrop, WorstCase
from mednext_edge.evaluation.gate import check_gate
from mednext_edge.evaluation.limits import Limits
from mednext_edge.evaluation.report import Report

from .reports import ENVIRONMENT, make_report


@pytest.mark.parametrize(
    ("upper", "status"), [(0.004, "passed"), (0.005, "passed"), (0.0051, "failed"), (-0.02, "passed")]
)
def test_decided_on_the_upper_end_of_the_interval(upper: float, status: str) -> None:
    result = check_gate(make_report(upper - 0.01, interval=(upper - 0.02, upper)), Limits(mean=0.005))
    assert (result.status, result.drop, result.passed) == (status, upper - 0.01, status == "passed")
    assert result.upper == upper
    assert f"(95 % interval to {upper:.4f})" in result.reason


@pytest.mark.parametrize(
    ("drop", "status"), [(0.004, "passed"), (0.005, "passed"), (0.0051, "failed"), (-0.02, "passed")]
)
def test_without_interval_the_mean_decides_and_the_reason_says_so(drop: float, status: str) -> None:
    result = check_gate(make_report(drop, interval=None), Limits(mean=0.005))
    assert (result.status, result.drop, result.upper) == (status, drop, None)
    assert "decided on the mean" in result.reason


def test_metric_is_chosen() -> None:
    report = make_report(0.1, nsd_drop=0.001, interval=None)
    assert check_gate(report).status == "failed"
    assert check_gate(report, Limits(metric="nsd")).status == "passed"
    report = make_report(0.001, nsd_drop=0.1, interval=None)
    assert check_gate(report).status == "passed"
    assert check_gate(report, Limits(metric="nsd")).status == "failed"


def test_collapsed_always_fails() -> None:
    result = check_gate(make_report(0.0, collapsed=True), Limits(mean=1))
    assert result.status == "failed"
    assert "background" in result.reason


def test_nothing_measured() -> None:
    assert check_gate(Report(environment=ENVIRONMENT)).status == "not_run"
    assert check_gate(make_report(None)).status == "not_run"


def test_for_the_manifest() -> None:
    gate = check_gate(make_report(0.004, interval=None)).for_manifest()
    assert (gate.status, gate.metric, gate.max_drop, gate.drop) == ("passed", "dice", 0.005, 0.004)


def test_wrong_questions() -> None:
    with pytest.raises(UnknownNameError, match="`nsd`"):
        check_gate(make_report(), Limits(metric="nds"))
    for max_drop in (-0.1, 1.5, math.nan, math.inf):
        with pytest.raises(UsageError, match="--max-drop"):
            check_gate(make_report(), Limits(mean=max_drop))


def drop_of(**changes: Any) -> MetricDrop:
    """Two classes: one loses nothing, the other 0.02 in the mean and 0.1 in its worst case."""
    values: dict[str, Any] = {
        "mean": 0.01,
        "ci95": (0.008, 0.012),
        "per_class": {
            "easy": ClassDrop(mean=0.0, ci95=(-0.001, 0.001)),
            "hard": ClassDrop(mean=0.02, ci95=(0.01, 0.03)),
            "absent": ClassDrop(mean=None, ci95=None),
        },
        "worst_case": WorstCase(case="case_7", label="hard", drop=0.1),
    }
    return MetricDrop(**{**values, **changes})


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(mean=0.012), []),
        (Limits(mean=0.0119), ["Dice drops by 0.0100 (95 % interval to 0.0120), allowed are 0.0119"]),
        (Limits(mean=1.0, per_class=0.03, per_case=0.1), []),
        (
            Limits(mean=1.0, per_class=0.025),
            ["Dice of hard drops by 0.0200 (95 % interval to 0.0300), allowed are 0.0250"],
        ),
        (
            Limits(mean=1.0, per_case=0.05),
            ["Dice of hard in the worst case, case_7, drops by 0.1000, allowed are 0.0500"],
        ),
    ],
)
def test_limits_of_means_classes_and_cases(limits: Limits, said: list[str]) -> None:
    assert limits.violations(drop_of()) == said


def test_a_class_that_few_cases_have_is_decided_on_its_mean() -> None:
    alone = drop_of(per_class={"hard": ClassDrop(mean=0.02, ci95=None)})
    assert Limits(mean=1.0, per_class=0.02).violations(alone) == []
    assert Limits(mean=1.0, per_class=0.019).violations(alone)


def test_the_report_s_classes_and_worst_case_decide() -> None:
    report = make_report(0.0, interval=(0.0, 0.0))
    assert check_gate(report, Limits(per_case=0.02)).passed
    failed = check_gate(report, Limits(per_case=0.005))
    assert failed.status == "failed"
    assert "worst case, case_2," in failed.reason
