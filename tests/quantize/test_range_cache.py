"""Ranges that are kept: taken again as they were, and never those of anything else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mednext_edge.cache import cache_folder
from mednext_edge.quantize import ptq
from mednext_edge.quantize.flavour import CPU
from mednext_edge.quantize.plan import Plan
from mednext_edge.quantize.range_cache import RangeCache
from tests.quantize.networks import NETWORKS, Network, network


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    monkeypatch.setenv("MEDNEXT_CACHE", str(tmp_path))
    return network(next(iter(NETWORKS)))


def calibrated(built: Network, estimator: str = "least-error") -> Plan:
    chosen = replace(built.calibration, estimator=estimator)
    return ptq.calibrate(built.graph, built.model.net, chosen, CPU, kinds=built.kinds)


def kept() -> list[Path]:
    return sorted((cache_folder() / "ranges").glob("*"))


def test_the_second_time_no_patch_is_passed(built: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    first = calibrated(built)
    assert len(kept()) == 1
    monkeypatch.setattr(ptq, "observe", None)
    second = calibrated(built)
    assert list(second.ranges) == list(first.ranges)
    for name, seen in first.ranges.items():
        again = second.ranges[name]
        assert (again.threshold, again.peak) == (seen.threshold, seen.peak)
        assert (again.mean is None) == (seen.mean is None)
        assert seen.mean is None or (again.mean is not None and torch.equal(again.mean, seen.mean))
    assert first.apply(built.graph) == second.apply(built.graph)


def test_other_estimators_patches_weights_and_layers_have_their_own(built: Network) -> None:
    calibrated(built)
    calibrated(built, "min-max")
    assert len(kept()) == 2
    files = {RangeCache(built.graph, built.chosen, built.calibration).file}
    files.add(RangeCache(built.graph, built.chosen, replace(built.calibration, sha256="1" * 64)).file)
    files.add(RangeCache(built.graph, list(built.chosen)[1:], built.calibration).file)
    other = type(built.graph)()
    other.CopyFrom(built.graph)
    weights = next(tensor for tensor in other.graph.initializer if tensor.name.endswith("weight"))
    weights.raw_data = bytes([weights.raw_data[0] ^ 1]) + weights.raw_data[1:]
    files.add(RangeCache(other, built.chosen, built.calibration).file)
    assert len(files) == 4


@pytest.mark.parametrize("damage", ["cut", "another layer", "no number", "below zero"])
def test_what_is_damaged_is_taken_anew(built: Network, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    first = calibrated(built)
    (file,) = kept()
    text = file.read_text()
    content = json.loads(text)
    name = next(iter(content["ranges"]))
    if damage == "cut":
        file.write_text(text[: len(text) // 2])
    else:
        if damage == "another layer":
            content["ranges"]["conv9"] = content["ranges"].pop(name)
        elif damage == "no number":
            content["ranges"][name]["peak"] = float("inf")
        else:
            content["ranges"][name]["threshold"] = -1.0
        file.write_text(json.dumps(content))
    assert calibrated(built).ranges[name].threshold == first.ranges[name].threshold
    assert "anew" in caplog.text
    assert file.read_text() == text


def test_a_full_disk_costs_nothing_but_time(
    built: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert calibrated(built).ranges
    assert "No space left" in caplog.text and not kept()
