"""The session on a CUDA graph, with a capture that runs on the processor."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import mednext_edge as mx
from mednext_edge.errors import DataError, TargetUnavailableError, UnknownNameError, UsageError
from mednext_edge.fusion.cuda_block import FusedBlock
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.runtime import cuda_graph
from mednext_edge.runtime.cuda_graph import CudaGraphSession

PATCH = (16, 8, 8)


class Capture:
    """As on a GPU: the function is called once, and a replay puts what it computes into the same memory."""

    def __init__(self) -> None:
        self.replays = 0
        self.given = ""

    def __call__(self, step: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
        self.given = device.type
        with torch.inference_mode():
            output = step()

        def replay() -> None:
            self.replays += 1
            output.copy_(step())

        return replay, output


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Capture:
    """The processor goes for the GPU."""
    capture = Capture()
    monkeypatch.setattr(cuda_graph, "capture", capture)
    monkeypatch.setattr(cuda_graph, "DEVICE", "cpu")
    return capture


def patches(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 1, *PATCH), np.float32)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 2e-2), ("bf16", 2e-1)])
def test_logits_are_those_of_the_network(
    tiny_model: LoadedModel, captured: Capture, precision: str, tolerance: float
) -> None:
    x = patches(2)
    with (
        mx.open(tiny_model) as baseline,
        CudaGraphSession.of(tiny_model, PATCH, precision=precision, device="cpu") as session,
    ):
        found, expected = session.run(x), baseline.run(x)
        assert session.precision == precision
        assert session.provider.endswith("CUDA graph")
    assert captured.given == "cpu"
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(("batch", "count", "replays"), [(1, 3, 3), (2, 3, 2), (4, 3, 1), (2, 0, 0)])
def test_any_number_of_patches(
    tiny_model: LoadedModel, captured: Capture, batch: int, count: int, replays: int
) -> None:
    session = CudaGraphSession.of(tiny_model, PATCH, batch=batch, precision="fp32", device="cpu")
    session.run(patches(5))  # leaves other patches in its memory
    captured.replays = 0
    x = patches(count)
    found = session.run(x)
    assert captured.replays == replays
    assert found.shape == (count, 3, *PATCH)
    for i in range(count):
        np.testing.assert_allclose(found[i : i + 1], session.run(x[i : i + 1]), rtol=1e-4, atol=1e-5)


def test_what_it_returns_is_not_overwritten(tiny_model: LoadedModel, captured: Capture) -> None:
    session = CudaGraphSession.of(tiny_model, PATCH, precision="fp32", device="cpu")
    first = session.run(patches(1))
    before = first.copy()
    session.run(patches(2))
    assert np.array_equal(first, before)


def test_it_runs_our_operators_and_leaves_the_model_alone(tiny_model: LoadedModel, captured: Capture) -> None:
    session = CudaGraphSession.of(tiny_model, PATCH, device="cpu")
    assert session._captured is not None
    net, given, _, _ = session._captured
    assert sum(isinstance(module, FusedBlock) for module in net.modules()) == 9
    assert given.is_contiguous(memory_format=torch.channels_last_3d)
    assert not any(isinstance(module, FusedBlock) for module in tiny_model.net.modules())
    assert {parameter.dtype for parameter in tiny_model.net.parameters()} == {torch.float32}


def test_another_patch(tiny_model: LoadedModel, captured: Capture) -> None:
    session = CudaGraphSession.of(tiny_model, PATCH, device="cpu")
    with pytest.raises(DataError, match=r"found a patch of \(8, 8, 8\); this engine was compiled for \(16, 8, 8\)"):
        session.run(np.zeros((1, 1, 8, 8, 8), np.float32))


def test_closed(tiny_model: LoadedModel, captured: Capture) -> None:
    session = CudaGraphSession.of(tiny_model, PATCH, device="cpu")
    session.close()
    session.close()
    with pytest.raises(AssertionError, match="closed"):
        session.run(patches(1))


def test_bad_requests(tiny_model: LoadedModel) -> None:
    with pytest.raises(UsageError, match="found the device `cpu`; a CUDA graph runs on a CUDA device"):
        CudaGraphSession.of(tiny_model, PATCH, device="cpu")
    with pytest.raises(UnknownNameError, match=r"unknown precision `fp61`\. Did you mean `fp16`"):
        CudaGraphSession.of(tiny_model, PATCH, precision="fp61")
    with pytest.raises(UsageError, match="batches of 0"):
        CudaGraphSession.of(tiny_model, PATCH, batch=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_gpu(tiny_model: LoadedModel) -> None:
    with pytest.raises(TargetUnavailableError, match="no device `cuda` here"):
        CudaGraphSession.of(tiny_model, PATCH)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("batch", [1, 2])
def test_on_a_gpu(tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    x = patches(3)
    with (
        mx.open(tiny_model) as baseline,
        CudaGraphSession.of(tiny_model, PATCH, batch=batch, precision="fp32") as session,
    ):
        expected = baseline.run(x)
        for _ in range(2):
            assert np.abs(session.run(x) - expected).max() <= 1e-3 * np.abs(expected).max()
