"""`mednext-export`: the whole way on a tiny network, the gate, wrong requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from mednext_edge.cli import export
from mednext_edge.export import tune
from mednext_edge.export.export import TARGETS
from mednext_edge.nvidia.recipe import HardwareCompatibility
from mednext_edge.quantize.kinds import KINDS
from tests.export.gpu import with_gpu, without_gpu

from .conftest import Cli


def test_flags_are_those_of_the_table_of_targets() -> None:
    assert set(export.TARGETS) == set(TARGETS)
    assert set(export.PRECISIONS) == {p for target in TARGETS.values() for p in target.precisions}
    assert tuple(KINDS) == export.INT8_LAYERS
    assert get_args(HardwareCompatibility) == export.COMPATIBILITY


def test_int8_with_calibration_and_validation(
    mednext_export: Cli, edge: Cli, checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tiny.openvino-int8"
    args = [checkpoint, "--target", "openvino", "--int8", "--calib", dataset, "--calib-samples", 4, "--out", out]
    done = mednext_export(*args, "--max-drop", 1, "--json")
    assert done.code == 0, done.err
    document = done.json
    assert (document["written"], document["manifest"]["precision"]) == (True, "int8")
    assert document["report"]["accuracy"]["labelled"] == 2
    assert document["gate"]["status"] == "passed"
    assert edge("verify", out).code == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert mednext_export(*args).code == 2
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_drop_over_the_limit_is_exit_3_and_keeps_the_bundle(
    mednext_export: Cli, edge: Cli, checkpoint: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mednext_edge.export import proof

    real = proof.check_gate
    monkeypatch.setattr(
        proof,
        "check_gate",
        lambda *args: real(*args).model_copy(update={"status": "failed", "reason": "Dice drops by 0.1"}),
    )
    out = tmp_path / "bundle"
    done = mednext_export(checkpoint, "--validate", dataset, "--out", out, "--json")
    assert done.code == 3
    assert "error: Dice drops by 0.1" in done.err
    assert done.json["gate"]["status"] == "failed"
    assert (out / "report.json").is_file()
    assert edge("verify", out, "--json").json["gate"]["status"] == "failed"


def test_dry_run_writes_nothing(
    mednext_export: Cli, checkpoint: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = mednext_export(checkpoint, "--target", "onnx", "--int8", "--calib", dataset, "--dry-run")
    assert (done.code, done.out) == (0, "")
    for words in ("Nothing was written", "onnx int8", "tiny.onnx-int8", "16 x 16 x 16"):
        assert words in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--target", "opnvino"], 2, "Did you mean `openvino`"),
        (["--target", "coreml"], 2, "Known: native, onnx, openvino, trt, trt-rtx"),
        (["--precision", "in8"], 2, "Did you mean `int8`"),
        (["--int8", "--precision", "fp32"], 2, "give one of them"),
        (["--target", "onnx", "--precision", "bf16"], 2, "unknown precision of target onnx"),
        (["--metric", "dise"], 2, "Did you mean `dice`"),
        (["--patch", "17", "16", "16"], 2, "multiple of 4"),
        (["--patch", "32", "32"], 2, "takes 3"),
        (["--int8"], 2, "--calib"),
        (["--target", "trt", "--dynamic"], 2, "--min-patch and --max-patch"),
        (["--target", "trt", "--min-patch", "8", "8", "8"], 2, "one end of the range"),
        (["--target", "trt", "--min-patch", "8", "8", "8", "--max-patch", "8", "8", "9"], 2, "multiple of 4"),
        (["--target", "trt", "--min-patch", "8", "8", "8", "--max-patch", "8", "8", "8"], 2, "<= --max-patch"),
        (["--target", "trt", "--int8-layers", "pointwise"], 2, "it belongs to --int8"),
        (["--target", "trt", "--int8", "--int8-layers", "pointwize"], 2, "Did you mean `pointwise`"),
        (["--target", "trt", "--gpu-arch", "8.6,8.9"], 2, "--target trt-rtx"),
        (["--target", "trt", "--hardware-compatibility", "ampere"], 2, "Did you mean `ampere+`"),
        (["--target", "trt", "--optimization-level", "6"], 2, "--optimization-level"),
        (["--target", "trt", "--workspace", "0"], 2, "--workspace"),
        (["--defer-build"], 2, "they belong to trt, trt-rtx"),
        (["--target", "onnx", "--gpu-arch", "8.6"], 2, "they belong to trt, trt-rtx"),
        (["--validate", "/nowhere"], 1, "/nowhere"),
    ],
)
def test_wrong_requests_leave_nothing(
    mednext_export: Cli,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = mednext_export(checkpoint, *flags)
    assert (done.code, done.out) == (code, "")
    assert words in " ".join(done.err.split())
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_cannot_be_built_here_is_exit_5_with_a_bundle(
    mednext_export: Cli, edge: Cli, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gpu(monkeypatch)
    monkeypatch.chdir(tmp_path)
    done = mednext_export(checkpoint, "--target", "trt", "--json")
    assert done.code == 5
    assert "mednext-edge build tiny.trt-fp16" in done.err
    assert done.json["manifest"]["engine"]["status"] == "deferred"
    assert edge("verify", "tiny.trt-fp16").code == 0
    used = edge("bench", "tiny.trt-fp16")
    assert (used.code, used.out) == (5, "")
    assert "not built yet" in used.err


def test_defer_build_with_every_option(
    mednext_export: Cli, checkpoint: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gpu(monkeypatch)
    out = tmp_path / "bundle"
    build = ["--defer-build", "--gpu-arch", "sm_87", "--workspace", 512, "--optimization-level", 4]
    build += ["--hardware-compatibility", "same-cc", "--version-compatible", "--int8-layers", "pointwise,thin"]
    size = ["--patch", 16, 16, 16, "--min-patch", 8, 8, 8, "--max-patch", 32, 16, 16]
    data = ["--int8", "--calib", dataset, "--calib-samples", 2, "--max-drop", 1]
    done = mednext_export(checkpoint, "--target", "trt", *data, *size, *build, "--out", out, "--no-progress")
    assert (done.code, done.out) == (0, ""), done.err
    assert "note: the engine is not built yet; its own graph ran in onnxruntime" in done.err
    recipe = json.loads((out / "build.json").read_text())
    assert (recipe["min"], recipe["opt"], recipe["max"]) == ([8, 8, 8], [16, 16, 16], [32, 16, 16])
    assert (recipe["archs"], recipe["workspace_mib"], recipe["optimization_level"]) == (["8.7"], 512, 4)
    assert (recipe["hardware_compatibility"], recipe["version_compatible"]) == ("same-cc", True)
    layers = json.loads((out / "report.json").read_text())["layers"]
    # Left out: the depthwise convolutions of five blocks and two down blocks, two transposed ones of each up block.
    assert layers["counts_by_precision"] == {"int8": 22, "fp16": 5 + 2 + 4}


def test_with_a_gpu_the_engine_is_built_and_measured(
    mednext_export: Cli, edge: Cli, checkpoint: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu(monkeypatch, tmp_path)
    out = tmp_path / "bundle"
    done = mednext_export(checkpoint, "--target", "trt", "--validate", dataset, "--max-drop", 1, "--out", out, "--json")
    assert done.code == 0, done.err
    document = done.json
    assert document["manifest"]["engine"]["status"] == "built"
    assert document["manifest"]["precision"] == "fp16"
    # Labelled images also show whether float16 holds every activation.
    assert document["plan"]["calibration"].startswith("4 patches")
    assert document["report"]["stand_in"] is None
    assert document["report"]["latency"]["p50_ms"] > 0
    assert document["report"]["accuracy"]["voxel_agreement"] > 0.99
    assert edge("bench", out, "--rounds", 2, "--json").code == 0


def test_checkpoint_that_is_none(mednext_export: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "weights.pth"
    file.write_bytes(np.random.default_rng(0).bytes(1000))
    done = mednext_export(file)
    assert (done.code, done.out) == (1, "")
    assert "not a checkpoint" in done.err
    assert list(tmp_path.iterdir()) == [file]


def test_tuning_that_cannot_be(mednext_export: Cli, checkpoint: Path) -> None:
    for arguments, words in (
        (["--no-tune", "--tune-seconds", 5], "give one of them"),
        (["--tune", "--tune-seconds", -1], "--tune-seconds"),
        (["--target", "onnx", "--tune"], "one form of every block alone"),
    ):
        done = mednext_export(checkpoint, *arguments, "--dry-run")
        assert (done.code, done.out) == (2, "")
        assert words in done.err


def test_a_short_tuning_is_the_default_where_there_is_something_to_choose(
    mednext_export: Cli, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEDNEXT_TUNE")

    def planned(*arguments: str) -> str:
        return str(mednext_export(checkpoint, *arguments, "--dry-run", "--json").json["plan"]["tuning"])

    assert planned() == "about 20 s"
    assert planned("--tune") == "about 60 s"
    assert planned("--tune-seconds", "5") == "about 5 s"
    assert (
        planned("--no-tune")
        == planned("--target", "onnx")
        == planned("--target", "native", "--precision", "bf16")
        == "none"
    )
    asked: list[float] = []

    def choose(block: object, channels: int, choice: tune.Choice, *rest: object) -> tune.Choice:
        asked.append(channels)
        return choice

    monkeypatch.setattr(tune, "_choose", choose)
    done = mednext_export(checkpoint, "--out", tmp_path / "out", "--tune-seconds", "1e-9", "--json")
    assert done.code == 0 and not asked
    assert {block["form"] for block in done.json["tuning"]["blocks"]} == {"parity"}
