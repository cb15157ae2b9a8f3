"""What an export is measured against."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mednext_edge.errors import ExportError
from mednext_edge.export import graph
from mednext_edge.export.baseline import baseline_session
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.runtime.onnx_session import OnnxSession
from mednext_edge.runtime.session import Array
from mednext_edge.runtime.torch_session import TorchSession
from tests.fusion.networks import WITH_GRN, loaded

from .conftest import PATCH, single


@pytest.fixture(scope="module")
def answer(model: LoadedModel, x: Array) -> Array:
    with TorchSession.of(model) as plain:
        return plain.run(x)


def test_onnx_runtime_computes_the_unmodified_network(model: LoadedModel, x: Array, answer: Array) -> None:
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    with baseline_session(model, PATCH) as session:
        assert isinstance(session, OnnxSession)
        assert (session.precision, session.patch) == ("fp32", PATCH)
        np.testing.assert_allclose(session.run(x), answer, rtol=1e-4, atol=1e-4 * np.abs(answer).max())
    # Deep supervision is switched off in a copy.
    assert model.net.do_ds
    assert all((value == before[name]).all() for name, value in model.net.state_dict().items())


@pytest.mark.parametrize("answers", ["off by 1 %", "not a number"])
def test_pytorch_computes_where_onnx_runtime_differs(
    model: LoadedModel, x: Array, answer: Array, monkeypatch: pytest.MonkeyPatch, answers: str
) -> None:
    real = OnnxSession._run
    wrong = 1.01 if answers == "off by 1 %" else np.float32("nan")
    monkeypatch.setattr(OnnxSession, "_run", lambda self, x: real(self, x) * wrong)
    with baseline_session(model, PATCH) as session:
        assert isinstance(session, TorchSession)
        # The same windows, whichever computes.
        assert (session.precision, session.patch) == ("fp32", PATCH)
        np.testing.assert_array_equal(session.run(x), answer)


@pytest.mark.parametrize("error", [ExportError("the exporter refuses"), ValueError("Message exceeds 2 GB")])
def test_pytorch_computes_where_there_is_no_graph(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(graph, "to_onnx", refuse)
    with baseline_session(model, PATCH) as session:
        assert isinstance(session, TorchSession)


def test_a_network_without_deep_supervision() -> None:
    flat = single(loaded(replace(WITH_GRN, spatial_dims=2)))
    x = np.random.default_rng(0).normal(size=(1, 2, 8, 8)).astype(np.float32)
    with baseline_session(flat, (8, 8)) as session, TorchSession.of(flat) as plain:
        assert isinstance(session, OnnxSession)
        answer = plain.run(x)
        np.testing.assert_allclose(session.run(x), answer, rtol=1e-4, atol=1e-4 * np.abs(answer).max())
