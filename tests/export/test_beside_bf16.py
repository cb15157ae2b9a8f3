"""Layers that OpenVINO refuses in INT8 beside bfloat16: found, left to bfloat16, and named."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

import mednext_edge as mx
from mednext_edge.cpu import features
from mednext_edge.data.dataset import Dataset
from mednext_edge.evaluation.report import Layers
from mednext_edge.export.beside_bf16 import PRECISION, culprits
from mednext_edge.export.export import TARGETS, export
from mednext_edge.export.openvino import FILE, REASON
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.runtime.openvino_session import OpenVinoSession

from .conftest import PATCH

REFUSED = ("enc_block_1.0.conv2", "up_0.conv3")
NAMES = [f"layer-{i}" for i in range(13)]


@pytest.mark.parametrize("bad", [{0}, {12}, {3, 4}, {0, 6, 7, 12}, set(range(13))])
def test_culprits_are_found(bad: set[int]) -> None:
    calls = 0

    def accepts(chosen: Sequence[str]) -> bool:
        nonlocal calls
        calls += 1
        return not {NAMES[i] for i in bad} & set(chosen)

    assert culprits(NAMES, accepts) == [NAMES[i] for i in sorted(bad)]
    assert calls <= 2 * len(NAMES)


def test_layers_that_are_refused_together_lose_one() -> None:
    pair = {NAMES[2], NAMES[9]}
    assert culprits(NAMES, lambda chosen: not pair <= set(chosen)) == [NAMES[9]]


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A plugin that has no INT8 kernel for two layers beside bfloat16; the hints that it was given."""
    compile_model, hints = ov.Core.compile_model, []

    def refuse(core: ov.Core, graph: ov.Model, device: str, options: dict[str, Any]) -> ov.CompiledModel:
        hints.append(options["INFERENCE_PRECISION_HINT"])
        if hints[-1] == "bf16" and any(rounded(graph, name) for name in REFUSED):
            raise RuntimeError("Check failed\nNo suitable implementations")
        return compile_model(core, graph, device, options)

    monkeypatch.setattr(ov.Core, "compile_model", refuse)
    return hints


def rounded(graph: ov.Model, layer: str) -> bool:
    """Whether the weights of a layer are INT8 numbers."""
    nodes = [op for op in graph.get_ops() if op.get_friendly_name().startswith(layer)]
    convolution = next(op for op in nodes if op.get_type_name() == "Convolution")
    weights = convolution.input_value(1).get_node()
    while weights.get_type_name() != "Constant":
        weights = weights.input_value(0).get_node()
    return bool(weights.get_element_type() == ov.Type.i8)


def exported(model: LoadedModel, precision: str, images: Dataset, out: Path) -> Path:
    return export(model, target="openvino", precision=precision, calibration=images, patch=PATCH, out=out / "bundle")


def layers_of(session: object, folder: Path) -> Layers:
    assert isinstance(session, OpenVinoSession)
    return TARGETS["openvino"].layers(session, folder / FILE)


def test_a_refused_layer_is_in_bfloat16_and_named(
    refusing: list[str],
    model: LoadedModel,
    images: Dataset,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        folder = export(
            model, target="openvino", precision=PRECISION, calibration=images, patch=PATCH, out=tmp_path / "b"
        )
    assert [text for text in caplog.messages if all(name in text for name in REFUSED)]
    graph = ov.Core().read_model(folder / FILE)
    assert [rounded(graph, name) for name in (*REFUSED, "up_0.conv2")] == [False, False, True]
    with mx.open(folder) as session:
        assert isinstance(session, OpenVinoSession) and not session.refused
        found = layers_of(session, folder)
    named = {name for fallback in found.fallbacks for name in fallback.name.split(",")}
    if {"avx512_bf16", "amx_bf16"} & set(features()):
        assert {fallback.reason for fallback in found.fallbacks} == {REASON}
        assert {(fallback.asked, fallback.got) for fallback in found.fallbacks} == {(PRECISION, "bf16")}
        assert len(found.fallbacks) == 2 and named >= set(REFUSED)
    else:
        assert named >= set(REFUSED)


def test_other_precisions_are_not_asked(
    refusing: list[str], model: LoadedModel, images: Dataset, tmp_path: Path
) -> None:
    exported(model, "int8", images, tmp_path)
    assert "bf16" not in refusing


def test_a_graph_that_is_refused_in_float_blames_no_layer(
    monkeypatch: pytest.MonkeyPatch, model: LoadedModel, images: Dataset, tmp_path: Path
) -> None:
    compile_model = ov.Core.compile_model

    def refuse(core: ov.Core, graph: ov.Model, device: str, options: dict[str, Any]) -> ov.CompiledModel:
        if options["INFERENCE_PRECISION_HINT"] == "bf16":
            raise RuntimeError("No suitable implementations")
        return compile_model(core, graph, device, options)

    monkeypatch.setattr(ov.Core, "compile_model", refuse)
    folder = exported(model, PRECISION, images, tmp_path)
    assert all(rounded(ov.Core().read_model(folder / FILE), name) for name in REFUSED)
    with mx.open(folder) as session:
        assert isinstance(session, OpenVinoSession) and session.refused and not session.kept
        x = np.zeros((1, 1, *(session.patch or session.task.inference.patch)), np.float32)
        assert np.isfinite(session.run(x)).all()
