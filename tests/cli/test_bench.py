"""`mednext-edge bench`."""

from __future__ import annotations

from pathlib import Path

import pytest

import mednext_edge as mx
from mednext_edge.models.loaded import LoadedModel

from .conftest import Cli


def test_with_baseline(edge: Cli, bundle: Path) -> None:
    done = edge("bench", bundle, "--baseline", "--rounds", 4, "--threads", 1, "--json")
    assert done.code == 0
    found = done.json
    assert set(found["latency"]) == set(found["engines"]) == {"this", "baseline"}
    assert all(len(latency["rounds_ms"]) == 4 for latency in found["latency"].values())
    assert all(latency["patch"] == [16, 16, 16] for latency in found["latency"].values())
    assert found["speedup"]["low"] <= found["speedup"]["value"] <= found["speedup"]["high"]
    assert found["environment"]["packages"]["openvino"]


def test_checkpoint_at_another_patch(edge: Cli, checkpoint: Path) -> None:
    done = edge("bench", checkpoint, "--patch", 32, 16, 24, "--rounds", 2)
    assert (done.code, done.out) == (0, "")
    assert "One patch of 32 x 16 x 24, 2 rounds" in done.err
    assert "torch" in done.err


def test_bundle_at_another_patch(edge: Cli, bundle: Path) -> None:
    done = edge("bench", bundle, "--patch", 32, 16, 24, "--rounds", 2, "--json")
    assert done.code == 0
    assert done.json["latency"]["this"]["patch"] == [32, 16, 24]


def test_fixed_engine_refuses_another_patch(edge: Cli, tiny_model: LoadedModel, tmp_path: Path) -> None:
    fixed = mx.export(tiny_model, target="onnx", out=tmp_path / "fixed")
    done = edge("bench", fixed, "--patch", 32, 32, 32)
    assert (done.code, done.out) == (2, "")
    assert "takes (16, 16, 16) alone" in done.err


@pytest.mark.parametrize("patch", [["32"], ["a", "b", "c"], ["0", "16", "16"]])
def test_impossible_patch(edge: Cli, bundle: Path, patch: list[str]) -> None:
    assert edge("bench", bundle, "--patch", *patch).code == 2
