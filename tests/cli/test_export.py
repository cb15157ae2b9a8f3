"""`mednext-export`: the whole way on a tiny network, the gate, wrong requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mednext_edge.cli import export
from mednext_edge.export.export import TARGETS

from .conftest import Cli


def test_flags_are_those_of_the_table_of_targets() -> None:
    assert set(export.TARGETS) == set(TARGETS)
    assert set(export.PRECISIONS) == {p for target in TARGETS.values() for p in target.precisions}


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
        (["--target", "coreml"], 2, "Known: onnx, openvino, trt, trt-rtx"),
        (["--precision", "in8"], 2, "Did you mean `int8`"),
        (["--int8", "--precision", "fp32"], 2, "give one of them"),
        (["--target", "onnx", "--precision", "bf16"], 2, "unknown precision of target onnx"),
        (["--metric", "dise"], 2, "Did you mean `dice`"),
        (["--patch", "17", "16", "16"], 2, "multiple of 4"),
        (["--patch", "32", "32"], 2, "takes 3"),
        (["--int8"], 2, "--calib"),
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
    assert words in done.err
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_that_is_none(mednext_export: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "weights.pth"
    file.write_bytes(np.random.default_rng(0).bytes(1000))
    done = mednext_export(file)
    assert (done.code, done.out) == (1, "")
    assert "not a checkpoint" in done.err
    assert list(tmp_path.iterdir()) == [file]
