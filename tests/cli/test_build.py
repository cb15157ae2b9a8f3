"""`mednext-edge build`: a deferred bundle is finished, and every way it can end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mednext_edge.bundle import verify
from mednext_edge.checkpoints import load
from mednext_edge.evaluation.report import Report
from mednext_edge.export import proof
from mednext_edge.export.export import export
from mednext_edge.export.targets import BuildOptions
from tests.export.gpu import VERSION, snapshot, with_gpu, without_gpu

from .conftest import Cli


@pytest.fixture(scope="module")
def original(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model for TensorRT in float16, deferred."""
    out = tmp_path_factory.mktemp("deferred") / "tiny.trt-fp16"
    export(load(checkpoint), target="trt", out=out, build=BuildOptions(defer=True))
    return out


@pytest.fixture
def deferred(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "place" / original.name)


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    return with_gpu(monkeypatch, tmp_path)


def test_build_for_people(edge: Cli, tensorrt: Any, deferred: Path) -> None:
    done = edge("build", deferred, "--no-progress")
    assert (done.code, done.out) == (0, "")
    for words in (
        "accuracy gate not_run",
        "time a patch",
        f"{deferred} built with tensorrt {VERSION} for 8.6",
    ):
        assert words in done.err
    assert "its own graph" not in done.err
    assert verify(deferred).engine.status == "built"
    assert edge("verify", deferred).code == 0


def test_build_for_programs(edge: Cli, tensorrt: Any, deferred: Path, dataset: Path, checkpoint: Path) -> None:
    flags = ["--validate", dataset, "--baseline", checkpoint, "--max-drop", 0.5, "--gpu-arch", "sm_86"]
    done = edge("build", deferred, *flags, "--json")
    assert done.code == 0, done.err
    document = done.json
    assert document["manifest"]["engine"]["status"] == "built"
    assert document["gate"]["status"] == "passed"
    assert document["report"]["accuracy"]["baseline"]["precision"] == "fp32"
    assert document["report"]["stand_in"] is None
    assert document["report"] == Report.model_validate_json((deferred / "report.json").read_text()).model_dump(
        mode="json"
    )
    assert document["seconds"] > 0


def test_drop_over_the_limit_is_exit_3_and_keeps_the_bundle(
    edge: Cli, tensorrt: Any, deferred: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = proof.check_gate
    monkeypatch.setattr(
        proof,
        "check_gate",
        lambda *args: real(*args).model_copy(update={"status": "failed", "reason": "Dice drops by 0.1"}),
    )
    done = edge("build", deferred, "--validate", dataset, "--json")
    assert done.code == 3
    assert f"error: Dice drops by 0.1; {deferred} is kept, marked as failed" in done.err
    assert done.json["gate"]["status"] == "failed"
    manifest = verify(deferred)
    assert (manifest.engine.status, manifest.gate.status) == ("built", "failed")


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--gpu-arch", "8.7"], 2, "--gpu-arch 8.6"),
        (["--gpu-arch", "ampere"], 2, "no GPU architecture"),
        (["--gpu-arch", "8.6,8.9"], 2, "--target trt-rtx"),
        (["--metric", "dise"], 2, "Did you mean `dice`"),
        (["--max-drop", "2"], 2, "less than or equal to 1"),
        (["--validate", "/nowhere"], 1, "/nowhere"),
        (["--baseline", "demo:hippocampus"], 2, "Give the checkpoint that it was exported from"),
        (["--baseline", "/nowhere"], 1, "/nowhere"),
    ],
)
def test_wrong_requests_change_nothing(
    edge: Cli, tensorrt: Any, deferred: Path, flags: list[str], code: int, words: str
) -> None:
    before = snapshot(deferred.parent)
    done = edge("build", deferred, *flags)
    assert (done.code, done.out) == (code, "")
    assert words in " ".join(done.err.split())
    assert snapshot(deferred.parent) == before
    assert tensorrt._builds == []


def test_a_bundle_of_another_target_is_exit_2(edge: Cli, tensorrt: Any, bundle: Path) -> None:
    before = snapshot(bundle)
    done = edge("build", bundle)
    assert (done.code, done.out) == (2, "")
    assert "has nothing to build; only bundles of the targets trt, trt-rtx have" in done.err
    assert snapshot(bundle) == before


def test_no_bundle_is_exit_2(edge: Cli, tmp_path: Path) -> None:
    done = edge("build", tmp_path / "none")
    assert (done.code, done.out) == (2, "")
    assert "expected a bundle" in done.err


def test_a_flipped_byte_is_exit_6(edge: Cli, tensorrt: Any, deferred: Path) -> None:
    content = bytearray((deferred / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (deferred / "model.onnx").write_bytes(content)
    before = snapshot(deferred.parent)
    done = edge("build", deferred)
    assert (done.code, done.out) == (6, "")
    assert "model.onnx" in done.err
    assert tensorrt._builds == []
    assert snapshot(deferred.parent) == before


def test_without_gpu_is_exit_5(edge: Cli, deferred: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch)
    before = snapshot(deferred.parent)
    done = edge("build", deferred)
    assert (done.code, done.out) == (5, "")
    assert "pip install tensorrt" in done.err
    assert snapshot(deferred.parent) == before


def test_a_builder_that_fails_is_exit_1(
    edge: Cli, tensorrt: Any, deferred: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt.Builder, "build_serialized_network", lambda *_: None)
    before = snapshot(deferred.parent)
    done = edge("build", deferred)
    assert (done.code, done.out) == (1, "")
    assert "TensorRT 10.3.0 cannot build model.onnx" in done.err
    assert snapshot(deferred.parent) == before
