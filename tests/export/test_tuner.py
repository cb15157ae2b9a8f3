"""The steps of a tuning in the whole job: their budget, their order, what the bundle, its report and its gate have."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mednext_edge as mx
from mednext_edge.bundle import Gate, verify
from mednext_edge.checkpoints import save
from mednext_edge.errors import UsageError
from mednext_edge.evaluation.limits import Limits
from mednext_edge.export import graph as graphs
from mednext_edge.export import tune, tuner
from mednext_edge.export.export import TARGETS
from mednext_edge.export.job import ExportOutcome, ExportRequest, GateFailure, run_export
from mednext_edge.export.proof import Proof
from mednext_edge.export.targets import Job, silent
from mednext_edge.export.tune import QUICK, THOROUGH, Choice, Effort, Setting, Tuning
from mednext_edge.export.tune_layers import LayerChoice, LayerTuning, WholeTrial
from mednext_edge.export.tune_race import Watch
from mednext_edge.export.tuner import Tuner
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.quantize.plan import Plan
from mednext_edge.runtime.openvino_session import OpenVinoSession
from mednext_edge.runtime.threads import ThreadTuning
from tests.training.blobs import write_blobs

GIVEN_BACK = ("enc_block_0.0.conv2", "up_1.conv1")


@pytest.fixture(scope="module")
def request_(tiny_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> ExportRequest:
    folder = tmp_path_factory.mktemp("tuned")
    save(folder / "tiny", tiny_model, dtype=torch.float32)
    data = str(write_blobs(folder / "blobs", cases=4))
    return ExportRequest(
        checkpoint=str(folder / "tiny"), precision="int8", calib=data, validate=data, calib_samples=1, tune=THOROUGH
    )


class Steps:
    """Stands in for what measures; notes what was asked for in which order, and how long it may take."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.seconds: list[float] = []
        self.now = 0.0
        self.takes = 0.0
        patched.setattr(tune, "_choose", self._form)
        patched.setattr(tuner, "tune_layers", self._layers)
        patched.setattr(tuner, "tune_threads", self._threads)
        check = Proof.check

        def checked(proof: Proof, folder: Path, manifest: Any) -> Gate:
            assert Tuning.model_validate_json((folder / "tuning.json").read_bytes()).threads is not None
            self.asked.append("gate")
            return check(proof, folder, manifest)

        patched.setattr(Proof, "check", checked)

    @property
    def watch(self) -> Watch:
        return Watch(lambda session, x: math.nan, lambda: self.now)

    def _form(self, block: Any, channels: int, choice: Choice, *rest: Any) -> Choice:
        self.asked.append("form")
        return choice.model_copy(update={"ratio": (2.0, 2.0, 2.0), "pairs": 8})

    def _layers(self, entry: Any, job: Job, plan: Plan, *, seconds: float, **rest: Any) -> LayerTuning:
        self.asked.append("layers")
        self.seconds.append(seconds)
        self.now += self.takes
        names = [name for name in plan.ranges if plan.layers[name].weights]
        times: dict[str, Any] = {"ratio": (0.5, 0.4, 0.6), "float_ms": 1.25, "int8_ms": 2.5, "pairs": 8}
        layers = (
            LayerChoice(name=name, kind=plan.layers[name].kind, decision=decision, **times)
            for name in names
            for decision in ("float" if name in GIVEN_BACK else "int8",)
        )
        whole = WholeTrial(float_layers=2, ratio=(0.9, 0.8, 0.95), with_ms=9, without_ms=10, pairs=8, kept=True)
        return LayerTuning(key="a", layers=tuple(layers), trials=(whole,), seconds=1, complete=True)

    def _threads(self, entry: Any, job: Job, *, seconds: float, **rest: Any) -> ThreadTuning:
        self.asked.append("threads")
        self.seconds.append(seconds)
        assert job.plan is None or job.plan.float_layers >= set(GIVEN_BACK)
        return ThreadTuning(key="b", machine="c", patch=job.patch, own=2, chosen=None, counts=(), seconds=1)


def finished(request: ExportRequest) -> ExportOutcome:
    """The export's outcome, whatever its own gate says of a network of random weights."""
    try:
        return run_export(request, silent)
    except GateFailure as failure:
        return failure.outcome


def test_the_gate_comes_after_the_tuning_and_judges_what_was_tuned(
    request_: ExportRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    outcome = finished(replace(request_, out=tmp_path / "out", limits=Limits(mean=1.0)))
    assert steps.asked == ["form", "form", "layers", "threads", "gate"]
    assert outcome.gate is not None and outcome.gate.status == "passed"
    assert outcome.tuning is not None and outcome.tuning.layers is not None
    assert set(outcome.tuning.layers.reasons) == set(GIVEN_BACK)
    assert "tuning.json" in {file.path for file in verify(outcome.path).files}
    assert outcome.report is not None and outcome.report.layers is not None
    named = {fallback.name: fallback for fallback in outcome.report.layers.fallbacks}
    reasons = {name: found.reason for name, found in named.items() if "faster in float" in found.reason}
    assert all(named[name].asked == "int8" and named[name].got == "fp32" for name in reasons)
    assert any("enc_block_0.0.conv2" in name for name in reasons)
    assert sum("up_1.conv1" in name for name in reasons) == 8, "every part of a parity form"
    assert len(reasons) == 9
    assert set(reasons.values()) == {
        "faster in float: 1.250 ms alone, 2.500 ms in INT8; the whole network takes 0.900 times as long with 2 layers "
        "in float"
    }
    with mx.open(outcome.path) as session:  # the engine itself says it, whoever opens it
        assert isinstance(session, OpenVinoSession)
        assert any("enc_block_0.0.conv2" in name for name in session.given_back)


def test_a_gate_that_fails_is_not_spared(
    request_: ExportRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    original = OpenVinoSession._run

    def wrong(session: OpenVinoSession, x: np.ndarray) -> np.ndarray:
        return -original(session, x) if session.precision == "int8" else original(session, x)

    monkeypatch.setattr(OpenVinoSession, "_run", wrong)
    with pytest.raises(GateFailure):
        run_export(replace(request_, out=tmp_path / "out"), silent)
    assert steps.asked[-1] == "gate"


def test_the_budget_goes_from_step_to_step(tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step leaves is for the next; what it takes is not."""
    steps = Steps(monkeypatch)
    setting = Setting("openvino", TARGETS["openvino"], "int8", (16, 16, 16))
    made = Tuner(tiny_model, setting, Effort(100), silent, watch=steps.watch)
    deploy = made.forms(tiny_model)
    assert deploy.rewrites[-1] == "parity"
    steps.takes = 30.0
    empty = Plan({}, {}, TARGETS["openvino"].flavour)
    job = Job(deploy, graphs.to_onnx(deploy, (16, 16, 16)), "int8", (16, 16, 16))
    made.layers(job, empty)
    made.threads(job)
    assert steps.seconds == [70.0, 70.0]


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_no_time_to_speak_of(seconds: float) -> None:
    with pytest.raises(UsageError, match=r"seconds to tune \(--tune-seconds\); expected 0 or more"):
        Effort(seconds)


def test_a_short_tuning_leaves_layers_alone_and_what_it_has_no_time_for(
    tiny_model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDNEXT_CACHE", str(tmp_path))
    steps = Steps(monkeypatch)
    setting = Setting("openvino", TARGETS["openvino"], "int8", (16, 16, 16))
    made = Tuner(tiny_model, setting, QUICK, silent, watch=steps.watch)
    deploy = made.forms(tiny_model)
    job = Job(deploy, graphs.to_onnx(deploy, (16, 16, 16)), "int8", (16, 16, 16))
    asked = list(steps.asked)
    assert made.layers(job, Plan({}, {}, TARGETS["openvino"].flavour)) == {}
    made.left = 0.0
    made.threads(job)
    assert steps.asked == asked


def test_zero_seconds_change_nothing(tiny_model: LoadedModel, tiny_bundle: Path, tmp_path: Path) -> None:
    out = mx.export(tiny_model, target="openvino", out=tmp_path / "out", tune=Effort(0))
    found = Tuning.model_validate_json((out / "tuning.json").read_bytes())
    assert found.threads is None and not any(block.ratio for block in found.blocks)
    assert (out / "model.bin").read_bytes() == (tiny_bundle / "model.bin").read_bytes()
