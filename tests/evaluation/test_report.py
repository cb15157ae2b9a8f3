from __future__ import annotations

import json
import math

import pytest
from pydantic import ValidationError

from mednext_edge.evaluation.report import EndToEnd, Report

from .reports import ENVIRONMENT, make_report


def test_json_round_trip() -> None:
    report = make_report()
    assert Report.model_validate_json(report.to_json()) == report


def test_sections_have_the_names_of_the_contract() -> None:
    stated = json.loads(make_report().to_json())
    assert {"cases", "baseline", "exported", "drop", "voxel_agreement"} <= stated["accuracy"].keys()
    assert {"precision", "dice_mean", "dice_per_class", "nsd_mean"} <= stated["accuracy"]["exported"].keys()
    assert {"dice_mean", "ci95", "worst_case"} <= stated["accuracy"]["drop"].keys()
    latency = {"patch", "threads", "p50_ms", "p90_ms", "p99_ms", "first_ms", "patches_per_s"}
    assert latency <= stated["latency"].keys()
    assert stated["end_to_end"].keys() == {"case_s"}
    assert {"counts_by_precision", "fallbacks"} <= stated["layers"].keys()
    assert {"peak_memory_mb", "size_mb", "environment"} <= stated.keys()


def test_all_but_the_environment_is_optional() -> None:
    report = Report(environment=ENVIRONMENT)
    assert Report.model_validate_json(report.to_json()) == report
    with pytest.raises(ValidationError, match="environment"):
        Report.model_validate({})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_value_that_json_does_not_have(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        EndToEnd(case_s=value)
