"""Forms of the up blocks, chosen by measurement."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mednext_edge as mx
from mednext_edge.errors import UsageError
from mednext_edge.export import tune, tune_cache
from mednext_edge.export.export import TARGETS
from mednext_edge.export.tune import (
    QUICK,
    THOROUGH,
    Choice,
    Setting,
    Tuning,
    check_tunable,
    input_sizes,
    tuned,
    tuning_key,
)
from mednext_edge.models.loaded import LoadedModel, Quantization

PATCH = (16, 16, 16)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDNEXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tuning"


def setting(precision: str = "fp32", name: str = "openvino") -> Setting:
    return Setting(name, TARGETS[name], precision, PATCH)


def transposed_first(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The first block, which is the largest, is found to be faster transposed; returns who was asked."""
    asked: list[str] = []

    def choose(block: Any, channels: int, choice: Choice, setting: Setting, *time: float) -> Choice:
        asked.append(choice.name)
        form, ratio = ("transposed", 0.5) if len(asked) == 1 else ("parity", 1.5)
        return choice.model_copy(update={"form": form, "ratio": (ratio, ratio, ratio), "pairs": 8})

    monkeypatch.setattr(tune, "_choose", choose)
    return asked


def deconvolutions(session: Any) -> int:
    return sum(layer.kind == "Deconvolution" and "res_conv" not in layer.name for layer in session.layers())


def test_blocks_and_the_sizes_they_have_in_the_network(tiny_model: LoadedModel) -> None:
    assert dict(input_sizes(mx.fuse(tiny_model), PATCH)) == {"up_1": (16, 4, 4, 4), "up_0": (8, 8, 8, 8)}


def test_a_tuned_bundle_has_the_chosen_forms_and_the_same_labels(
    tiny_model: LoadedModel, tiny_bundle: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = transposed_first(monkeypatch)
    out = mx.export(tiny_model, target="openvino", tune=THOROUGH, out=tmp_path / "out")
    found = Tuning.model_validate_json((out / "tuning.json").read_bytes())
    assert [(block.name, block.form) for block in found.blocks] == [("up_1", "parity"), ("up_0", "transposed")]
    assert asked == ["up_0", "up_1"] and found.complete
    x = np.random.default_rng(0).standard_normal((1, 1, *PATCH), dtype=np.float32)
    with mx.open(out) as one, mx.open(tiny_bundle) as other:
        assert deconvolutions(one) == 1 + deconvolutions(other)
        a, b = one.run(x), other.run(x)
    assert np.abs(a - b).max() < 1e-4 * np.abs(b).max()
    assert (a.argmax(1) == b.argmax(1)).mean() >= 0.9999
    again, kept = tuned(tiny_model, setting(), seconds=60, progress=lambda *step: None)
    assert found.layers is None and found.threads is not None and found.threads.own >= 1
    assert kept == found.model_copy(update={"threads": None}), "nothing is measured twice"
    assert len(asked) == 2
    assert again.rewrites[-1] == "parity"
    assert {file.suffix for file in cache.iterdir()} == {".json"}


def test_real_blocks_are_measured(tiny_model: LoadedModel) -> None:
    """Both forms in INT8: what comes of it is this machine's business."""
    _, found = tuned(tiny_model, setting("int8"), seconds=300, progress=lambda *step: None)
    first = found.blocks[0]
    assert first.ratio is not None and first.pairs >= tune.RULES.first
    assert first.ratio[1] <= first.ratio[0] <= first.ratio[2]
    assert (first.form == "transposed") <= (first.ratio[2] < 1)


def test_no_time_leaves_the_defaults_and_is_not_kept(tiny_model: LoadedModel, cache: Path) -> None:
    model, found = tuned(tiny_model, setting(), seconds=0, progress=lambda *step: None)
    assert [(block.form, block.ratio) for block in found.blocks] == [("parity", None)] * 2
    assert not found.complete and not cache.exists()
    assert model.rewrites == mx.fuse(tiny_model, optional=["parity"]).rewrites


def test_a_damaged_cache_is_told_and_measured_anew(
    tiny_model: LoadedModel, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = transposed_first(monkeypatch)
    key = tuning_key(mx.fuse(tiny_model), setting())
    cache.mkdir(parents=True)
    (cache / f"{key}.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        tuned(tiny_model, setting(), seconds=60, progress=lambda *step: None)
    assert len(asked) == 2
    assert "cannot be read" in caplog.text
    assert Tuning.model_validate_json((cache / f"{key}.json").read_bytes()).complete


def test_the_key_is_of_machine_network_patch_and_precision(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mx.fuse(tiny_model)
    one = tuning_key(model, setting())
    assert one == tuning_key(model, setting())
    others = [
        tuning_key(model, setting("int8")),
        tuning_key(model, Setting("openvino", TARGETS["openvino"], "fp32", (32, 16, 16))),
        tuning_key(mx.fuse(tiny_model, optional=["parity"]), setting()),
    ]
    here = tune_cache.environment()
    monkeypatch.setattr(tune_cache, "environment", lambda: here.model_copy(update={"cpu": "another"}))
    assert len({one, *others, tuning_key(model, setting())}) == 5


def test_what_has_nothing_to_choose(tiny_model: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="target onnx; it has one form"):
        mx.export(tiny_model, target="onnx", tune=THOROUGH, out=tmp_path / "out")
    assert not (mx.export(tiny_model, target="onnx", tune=QUICK, out=tmp_path / "as-it-is") / "tuning.json").exists()
    learnt = LoadedModel(
        tiny_model.net,
        tiny_model.task,
        tiny_model.source,
        quantization=Quantization(weight_levels=63, thresholds={"stem": 1.0}),
    )
    with pytest.raises(UsageError, match="trained in INT8"):
        check_tunable(learnt, setting("int8"))
    assert not (tmp_path / "out").exists()
