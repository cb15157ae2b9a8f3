from __future__ import annotations

import math

import pytest

from mednext_edge.errors import UnknownNameError, UsageError
from mednext_edge.evaluation.gate import check_gate
from mednext_edge.evaluation.report import Report

from .reports import ENVIRONMENT, make_report


@pytest.mark.parametrize(
    ("upper", "status"), [(0.004, "passed"), (0.005, "passed"), (0.0051, "failed"), (-0.02, "passed")]
)
def test_decided_on_the_upper_end_of_the_interval(upper: float, status: str) -> None:
    result = check_gate(make_report(upper - 0.01, interval=(upper - 0.02, upper)), max_drop=0.005)
    assert (result.status, result.drop, result.passed) == (status, upper - 0.01, status == "passed")
    assert result.upper == upper
    assert f"(95 % interval to {upper:.4f})" in result.reason


@pytest.mark.parametrize(
    ("drop", "status"), [(0.004, "passed"), (0.005, "passed"), (0.0051, "failed"), (-0.02, "passed")]
)
def test_without_interval_the_mean_decides_and_the_reason_says_so(drop: float, status: str) -> None:
    result = check_gate(make_report(drop, interval=None), max_drop=0.005)
    assert (result.status, result.drop, result.upper) == (status, drop, None)
    assert "decided on the mean" in result.reason


def test_metric_is_chosen() -> None:
    report = make_report(0.1, nsd_drop=0.001, interval=None)
    assert check_gate(report, "dice").status == "failed"
    assert check_gate(report, "nsd").status == "passed"
    report = make_report(0.001, nsd_drop=0.1, interval=None)
    assert check_gate(report, "dice").status == "passed"
    assert check_gate(report, "nsd").status == "failed"


def test_collapsed_always_fails() -> None:
    result = check_gate(make_report(0.0, collapsed=True), max_drop=1)
    assert result.status == "failed"
    assert "background" in result.reason


def test_nothing_measured() -> None:
    assert check_gate(Report(environment=ENVIRONMENT)).status == "not_run"
    assert check_gate(make_report(None)).status == "not_run"


def test_for_the_manifest() -> None:
    gate = check_gate(make_report(0.004, interval=None), "dice", 0.005).for_manifest()
    assert (gate.status, gate.metric, gate.max_drop, gate.drop) == ("passed", "dice", 0.005, 0.004)


def test_wrong_questions() -> None:
    with pytest.raises(UnknownNameError, match="`nsd`"):
        check_gate(make_report(), "nds")
    for max_drop in (-0.1, 1.5, math.nan, math.inf):
        with pytest.raises(UsageError, match="--max-drop"):
            check_gate(make_report(), max_drop=max_drop)
