"""The whole job in this process: its choices, its checks before the work, its gate, and its end in the middle."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mednext_edge.bundle import read_manifest, verify
from mednext_edge.checkpoints import save
from mednext_edge.errors import AccuracyGateError, DataError, UnknownNameError, UsageError
from mednext_edge.evaluation.limits import Limits
from mednext_edge.evaluation.report import Report
from mednext_edge.export import job, proof
from mednext_edge.export.job import ExportRequest, run_export
from mednext_edge.export.targets import BuildOptions
from mednext_edge.models.loaded import LoadedModel
from tests.training.blobs import write_blobs


@pytest.fixture(scope="module")
def checkpoint(tiny_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save(folder, tiny_model, dtype=torch.float32)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cases; fold 0 keeps one of them for validation."""
    return write_blobs(tmp_path_factory.mktemp("data") / "blobs", cases=4)


@pytest.fixture
def request_(checkpoint: Path, tmp_path: Path) -> ExportRequest:
    return ExportRequest(checkpoint=str(checkpoint), target="onnx", out=tmp_path / "out")


def quiet(_: str, __: int, ___: int) -> None:
    """Progress that nobody watches."""


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_without_data_it_only_converts(request_: ExportRequest, tmp_path: Path) -> None:
    told: list[str] = []
    outcome = run_export(request_, lambda what, done, total: told.append(what))
    assert (outcome.path, outcome.written) == (tmp_path / "out", True)
    assert outcome.gate is not None
    assert outcome.gate.status == "not_run"
    assert names(outcome.path) == {"model.onnx", "report.json", "report.md", "manifest.json", "manifest.sha256"}
    report = Report.model_validate_json((outcome.path / "report.json").read_text())
    assert report == outcome.report
    assert report.latency is not None
    assert report.accuracy is None
    assert outcome.manifest == verify(outcome.path)
    assert told[0] == "load"
    assert {"convert", "time the engine"} <= set(told)


def test_calibration_data_also_validates(request_: ExportRequest, data: Path) -> None:
    outcome = run_export(
        replace(request_, precision="int8", calib=str(data), calib_samples=2, limits=Limits(mean=1.0)), quiet
    )
    assert outcome.report is not None
    assert outcome.report.accuracy is not None
    assert outcome.report.accuracy.cases == outcome.report.accuracy.labelled == 1
    assert outcome.report.accuracy.baseline is not None
    assert outcome.report.accuracy.baseline.precision == "fp32"
    assert outcome.plan["calibration"].startswith("2 patches of 16 x 16 x 16 from blobs")
    assert outcome.plan["validation"] == "1 cases"
    assert outcome.report.layers is not None
    assert outcome.report.layers.counts_by_precision["int8"] > 0
    assert "comparison.png" in {entry.path for entry in read_manifest(outcome.path).files}
    assert "comparison.png" in (outcome.path / "report.md").read_text()


def test_images_alone_calibrate(request_: ExportRequest, data: Path) -> None:
    outcome = run_export(replace(request_, precision="int8", calib=str(data / "imagesTr"), calib_samples=4), quiet)
    assert outcome.gate is not None
    assert outcome.gate.status == "not_run"
    assert outcome.plan["calibration"].startswith("4 patches")
    assert outcome.plan["validation"] == "none"
    with pytest.raises(DataError, match="holds no validation case"):
        run_export(replace(request_, validate=str(data / "imagesTr"), force=True), quiet)


def test_name_of_the_bundle_when_none_is_given(
    request_: ExportRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run_export(replace(request_, out=None, dry_run=True), quiet)
    assert (outcome.path, outcome.written) == (Path("tiny.onnx-fp32"), False)
    assert outcome.manifest is None
    assert not names(tmp_path)


def test_a_failed_gate_keeps_the_bundle(
    request_: ExportRequest, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = proof.check_gate
    monkeypatch.setattr(
        proof,
        "check_gate",
        lambda report, limits: real(report, limits).model_copy(
            update={"status": "failed", "drop": 0.25, "reason": "Dice drops by 0.2500"}
        ),
    )
    with pytest.raises(AccuracyGateError, match=r"Dice drops by 0\.2500; .*out is kept, marked as failed") as caught:
        run_export(replace(request_, validate=str(data)), quiet)
    assert caught.value.exit_code == 3
    manifest = verify(tmp_path / "out")
    assert (manifest.gate.status, manifest.gate.drop, manifest.gate.max_drop) == ("failed", 0.25, 0.005)
    assert {"report.json", "report.md", "comparison.png"} <= names(tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"target": "onxx"}, UnknownNameError, "Did you mean `onnx`"),
        ({"precision": "bf16"}, UnknownNameError, "precision of target onnx"),
        ({"limits": Limits(metric="dize")}, UnknownNameError, "Did you mean `dice`"),
        ({"patch": (18, 16, 16)}, UsageError, "multiple of 4"),
        ({"precision": "int8"}, UsageError, "give --calib DATA"),
    ],
)
def test_wrong_requests_are_refused_before_any_work(
    request_: ExportRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    kind: type,
    message: str,
) -> None:
    monkeypatch.setattr(job, "export", never)
    for dry_run in (False, True):
        with pytest.raises(kind, match=message):
            run_export(replace(request_, dry_run=dry_run, **changes), quiet)
    assert not names(tmp_path)


def never(*_: object, **__: object) -> None:
    raise AssertionError("work was begun")


def test_a_taken_folder_is_refused_before_any_work(
    request_: ExportRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    monkeypatch.setattr(job, "draw", never)
    monkeypatch.setattr(job, "export", never)
    for force in (False, True):
        with pytest.raises(UsageError, match="other things in it and is never replaced"):
            run_export(replace(request_, force=force), quiet)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("the engine crashed"), MemoryError])
@pytest.mark.parametrize("stage", ["convert", "time the engine", "validate"])
def test_an_end_in_the_middle_leaves_nothing(
    request_: ExportRequest, data: Path, tmp_path: Path, error: type[BaseException] | BaseException, stage: str
) -> None:
    def stop(what: str, _: int, __: int) -> None:
        if what.startswith(stage):
            raise error

    kind = error if isinstance(error, type) else type(error)
    with pytest.raises(kind):
        run_export(replace(request_, validate=str(data)), stop)
    assert not names(tmp_path)


def test_the_picture_shows_the_case_that_differs_most(request_: ExportRequest, data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    outcome = run_export(replace(request_, validate=str(copy), out=tmp_path / "out"), quiet)
    assert outcome.report is not None
    assert outcome.report.accuracy is not None
    # FP32 in ONNX Runtime is FP32 in PyTorch, but for the last digits.
    assert outcome.report.accuracy.voxel_agreement is not None
    assert outcome.report.accuracy.voxel_agreement > 0.999
    picture = (outcome.path / "comparison.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 1000
    assert np.isfinite(outcome.seconds)


@pytest.mark.parametrize("precision", [None, "fp32"])
def test_images_also_show_whether_float16_holds_the_network(
    request_: ExportRequest, data: Path, precision: str | None
) -> None:
    told: set[str] = set()
    asked = replace(
        request_, target="trt", precision=precision, limits=Limits(mean=1.0), build=BuildOptions(defer=True)
    )
    outcome = run_export(replace(asked, validate=str(data)), lambda what, done, total: told.add(what))
    assert outcome.manifest is not None
    assert outcome.manifest.precision == (precision or "fp16")
    assert ("check float16" in told) == (precision is None)
    assert outcome.plan["calibration"].startswith("4 patches" if precision is None else "none")


@pytest.mark.parametrize(
    ("target", "build", "message"),
    [
        ("trt", BuildOptions(archs=("8.6", "8.9")), "For several use --target trt-rtx"),
        ("onnx", BuildOptions(defer=True), "they belong to trt, trt-rtx"),
    ],
)
def test_build_options_are_checked_before_the_checkpoint_is_read(
    request_: ExportRequest, monkeypatch: pytest.MonkeyPatch, target: str, build: BuildOptions, message: str
) -> None:
    monkeypatch.setattr(job, "load", never)
    with pytest.raises(UsageError, match=message):
        run_export(replace(request_, target=target, build=build), quiet)
