from __future__ import annotations

import math

import pytest

from mednext_edge.errors import UnknownNameError, UsageError
from mednext_edge.evaluation.gate import check_gate
from mednext_edge.evaluation.report import Report

from .reports import ENVIRONMENT, make_report


@pytest.mark.parametrize(
    ("drop", "status"), [(0.004, "passed"), (0.005, "passed"), (0.0051, "failed"), (-0.02, "passed")]
)
def test_decided_on_the_mean_drop(drop: float, status: str) -> None:
    result = check_gate(make_report(drop), max_drop=0.005)
    assert (result.status, result.drop, result.passed) == (status, drop, status == "passed")
    assert result.upper == 0.0075, "the interval's end is told, and does not decide"


def test_metric_is_chosen() -> None:
    report = make_report(0.1, nsd_drop=0.001)
    assert check_gate(report, "dice").status == "failed"
    assert check_gate(report, "nsd").status == "passed"
    report = make_report(0.001, nsd_drop=0.1)
    assert check_gate(report, "dice").status == "passed"
    assert check_gate(report, "nsd").status == "failed"


def test_without_interval() -> None:
    result = check_gate(make_report(0.001, interval=None))
    assert result.passed and result.upper is None


def test_collapsed_always_fails() -> None:
    result = check_gate(make_report(0.0, collapsed=True), max_drop=1)
    assert result.status == "failed"
    assert "background" in result.reason


def test_nothing_measured() -> None:
    assert check_gate(Report(environment=ENVIRONMENT)).status == "not_run"
    assert check_gate(make_report(None)).status == "not_run"


def test_for_the_manifest() -> None:
    gate = check_gate(make_report(0.004), "dice", 0.005).for_manifest()
    assert (gate.status, gate.metric, gate.max_drop, gate.drop) == ("passed", "dice", 0.005, 0.004)


def test_wrong_questions() -> None:
    with pytest.raises(UnknownNameError, match="`nsd`"):
        check_gate(make_report(), "nds")
    for max_drop in (-0.1, 1.5, math.nan, math.inf):
        with pytest.raises(UsageError, match="--max-drop"):
            check_gate(make_report(), max_drop=max_drop)
