"""Accuracy control in the whole job: what it measures, keeps, writes and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mednext_edge.bundle import verify
from mednext_edge.checkpoints import save
from mednext_edge.errors import DataError, UsageError
from mednext_edge.evaluation.bootstrap import Table
from mednext_edge.evaluation.limits import Limits
from mednext_edge.export.control import KEPT, AccuracyControl
from mednext_edge.export.job import ExportOutcome, ExportRequest, GateFailure, run_export
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.runtime.session import Session
from tests.training.blobs import write_blobs


@pytest.fixture(scope="module")
def request_(tiny_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> ExportRequest:
    folder = tmp_path_factory.mktemp("control")
    save(folder / "tiny", tiny_model, dtype=torch.float32)
    data = str(write_blobs(folder / "blobs", cases=4))
    return ExportRequest(
        checkpoint=str(folder / "tiny"),
        target="openvino",
        precision="int8",
        calib=data,
        validate=data,
        calib_samples=2,
        int8_layers=("transposed", "norm", "strided"),
        limits=Limits(mean=0.01),
        accuracy_control=True,
    )


def quiet(_: str, __: int, ___: int) -> None:
    """Progress that nobody watches."""


def needing(count: int) -> Callable[[AccuracyControl, Session, str], Table]:
    """Scores of two cases and classes as if `count` layers had to stay in float."""

    def scores(self: AccuracyControl, session: Session, what: str) -> Table:
        words = what.split()
        kept = int(words[2]) if words[2].isdigit() else count
        return np.full((2, 2), 0.9) - 0.02 * max(0, count - kept)

    return scores


def finished(request: ExportRequest) -> ExportOutcome:
    """The export's outcome, whatever its own gate says of a network of random weights."""
    try:
        return run_export(request, quiet)
    except GateFailure as failure:
        return failure.outcome


@pytest.mark.parametrize("target", ["openvino", "onnx"])
def test_as_many_layers_stay_in_float_as_the_gate_asks_for(
    request_: ExportRequest, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AccuracyControl, "_scores", needing(3))
    outcome = finished(replace(request_, target=target, out=tmp_path / "out"))
    assert outcome.report is not None
    found = outcome.report.control
    assert found is not None
    assert found.reached
    assert len(found.float_layers) == 3
    assert {trial.float_layers: trial.passed for trial in found.trials} == {
        0: False,
        1: False,
        2: False,
        4: True,
        3: True,
    }
    entries = json.loads((outcome.path / "sensitivity.json").read_text())["layers"]
    by_price = sorted(entries, key=lambda e: e["nmse"] / e["gain"], reverse=True)
    assert [entry["name"] for entry in by_price[:3]] == list(found.float_layers)
    assert {entry["name"] for entry in entries if entry["decision"] == "float"} == set(found.float_layers)
    assert "sensitivity.json" in {file.path for file in verify(outcome.path).files}
    assert outcome.report.layers is not None
    reasons = {f.name: f.reason for f in outcome.report.layers.fallbacks}
    kept = {name for name, reason in reasons.items() if reason == KEPT}
    parts = [part.split("/")[0] for name in kept for part in name.split(",")]
    for name in found.float_layers:
        if not name.endswith("norm"):  # a graph's norms compute in float anyway, and are not listed
            assert any(part == name or part.startswith(f"{name}.") for part in parts), name
    assert "## Accuracy control" in (outcome.path / "report.md").read_text()


def test_a_gate_out_of_reach_keeps_the_best_and_says_so(
    request_: ExportRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AccuracyControl, "_scores", needing(10**6))
    report = finished(replace(request_, target="onnx", out=tmp_path / "out")).report
    assert report is not None
    assert report.control is not None
    assert not report.control.reached
    assert not any(trial.passed for trial in report.control.trials)
    best = min(report.control.trials, key=lambda trial: trial.drop)
    assert len(report.control.float_layers) == best.float_layers == max(t.float_layers for t in report.control.trials)
    assert "not reached" in (tmp_path / "out" / "report.md").read_text()


def test_what_it_measures_is_real(request_: ExportRequest, tmp_path: Path) -> None:
    """On its own images, with a gate that cannot fail: one trial, and the drop that the report has."""
    report = run_export(replace(request_, out=tmp_path / "out", limits=Limits(mean=1.0)), quiet).report
    assert report is not None
    assert report.accuracy is not None
    assert report.accuracy.drop is not None
    assert report.control is not None
    (trial,) = report.control.trials
    assert trial.float_layers == 0
    assert report.accuracy.drop.dice_mean is not None
    assert abs(trial.drop - report.accuracy.drop.dice_mean) < 1e-6


def test_cases_without_foreground_decide_nothing(
    request_: ExportRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AccuracyControl, "_scores", lambda *_: np.full((2, 2), np.nan))
    monkeypatch.setattr(AccuracyControl, "_measured", lambda *_: ())
    with pytest.raises(DataError, match="needs cases with foreground"):
        run_export(replace(request_, target="onnx", out=tmp_path / "out"), quiet)
    assert not list(tmp_path.iterdir())


def test_it_belongs_to_int8(request_: ExportRequest, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found --accuracy-control with precision fp32"):
        run_export(replace(request_, precision="fp32", int8_layers=(), out=tmp_path / "out"), quiet)


def test_it_needs_labels(request_: ExportRequest, tmp_path: Path) -> None:
    assert request_.calib is not None
    alone = str(Path(request_.calib) / "imagesTr")
    with pytest.raises(UsageError, match="without labelled images to decide on; give --validate DATA"):
        run_export(replace(request_, calib=alone, validate=None, out=tmp_path / "out"), quiet)


def test_sensitivity_is_kept_and_gone_on_with(
    request_: ExportRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AccuracyControl, "_scores", needing(0))
    asked = replace(request_, target="onnx", int8_layers=("norm",), sensitivity=tmp_path / "layers")
    first = finished(replace(asked, out=tmp_path / "first"))
    kept = json.loads((tmp_path / "layers" / "sensitivity.json").read_text())
    assert kept["complete"]

    def measured_again(*_: object) -> None:
        raise AssertionError("measured what was known")

    monkeypatch.setattr("mednext_edge.quantize.sensitivity._compare", measured_again)
    second = finished(replace(asked, out=tmp_path / "second"))
    for outcome in (first, second):
        stated = json.loads((outcome.path / "sensitivity.json").read_text())
        assert stated["layers"] == kept["layers"]
    with pytest.raises(UsageError, match="figures of another checkpoint, target, calibration or kind of layer"):
        run_export(replace(asked, calib_samples=1, out=tmp_path / "third"), quiet)


def test_minutes_that_do_not_do_for_the_layers(request_: ExportRequest, tmp_path: Path) -> None:
    asked = replace(request_, target="onnx", int8_layers=("norm",), control_minutes=0.0, out=tmp_path / "out")
    with pytest.raises(UsageError, match=r"0.0 minutes did for 1 of \d+ layers; give more --control-minutes"):
        run_export(asked, quiet)
    assert not (tmp_path / "out").exists()


def test_its_options_belong_to_it(request_: ExportRequest, tmp_path: Path) -> None:
    for changes in ({"sensitivity": tmp_path}, {"control_minutes": 1.0}):
        with pytest.raises(UsageError, match="without --accuracy-control"):
            run_export(replace(request_, accuracy_control=False, **changes), quiet)
