"""TensorRT on a real GPU: built here, run here, the same answers as ONNX Runtime. Skipped without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mednext_edge.errors import DataError, ExportError, TargetUnavailableError
from mednext_edge.export.graph import to_onnx
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.nvidia.architectures import supported
from mednext_edge.nvidia.build import build_plan
from mednext_edge.nvidia.devices import devices
from mednext_edge.nvidia.memory import CudaMemory, TorchMemory
from mednext_edge.nvidia.providers import PROVIDERS, Provider
from mednext_edge.nvidia.recipe import BuildRecipe
from mednext_edge.runtime import tensorrt_session
from mednext_edge.runtime.onnx_session import OnnxSession
from mednext_edge.runtime.session import Array
from mednext_edge.runtime.tensorrt_session import TensorRtSession

LOW, USUAL, HIGH = (8, 8, 8), (16, 16, 16), (32, 32, 32)


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"], scope="module")
def provider(request: pytest.FixtureRequest) -> Provider:
    found = PROVIDERS[request.param]
    try:
        module, here = found.load(), devices()
    except TargetUnavailableError as error:
        pytest.skip(str(error))
    if not here:
        pytest.skip("no NVIDIA GPU")
    if found.cross and here[0].capability not in supported(module):
        pytest.skip(f"{found.title} does not run on {here[0]}")
    return found


@pytest.fixture(params=[TorchMemory, CudaMemory], ids=["torch", "cuda-python"])
def memory(request: pytest.FixtureRequest, provider: Provider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sessions take their memory from this package alone."""
    try:
        request.param(0).close()
    except (TargetUnavailableError, ExportError) as error:
        pytest.skip(str(error))
    monkeypatch.setattr(tensorrt_session, "open_memory", request.param)
    monkeypatch.setenv("MEDNEXT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def built(provider: Provider, tiny_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the graph and its plan, of open size."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "model.onnx").write_bytes(to_onnx(tiny_model, USUAL, dynamic=True).SerializeToString())
    recipe = BuildRecipe(provider=provider.name, input="image", channels=1, min=LOW, opt=USUAL, max=HIGH)
    arch = devices()[0].capability if provider.cross else None
    build_plan(folder / "model.onnx", recipe, folder / "model.plan", arch=arch)
    return folder


def opening(built: Path, model: LoadedModel, provider: Provider) -> TensorRtSession:
    return TensorRtSession(
        built / "model.plan", model.task, "fp32", provider=provider, provider_version=provider.version
    )


def images(*size: int, batch: int = 1) -> Array:
    return np.random.default_rng(0).normal(size=(batch, 1, *size)).astype(np.float32)


@pytest.mark.usefixtures("memory")
def test_same_answers_as_the_graph(built: Path, tiny_model: LoadedModel, provider: Provider) -> None:
    with (
        opening(built, tiny_model, provider) as session,
        OnnxSession(built / "model.onnx", tiny_model.task, "fp32") as other,
    ):
        assert (session.smallest, session.largest) == (LOW, HIGH)
        for size in (USUAL, HIGH, LOW, USUAL, (8, 16, 32)):
            x = images(*size, batch=3)  # the second patch records a graph, the third replays it
            np.testing.assert_allclose(session.run(x), other.run(x), rtol=1e-3, atol=1e-4)
        with pytest.raises(DataError, match="this plan was built for"):
            session.run(images(64, 8, 8))
        assert session.layers()


def test_tensors(
    built: Path, tiny_model: LoadedModel, provider: Provider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    monkeypatch.setenv("MEDNEXT_CACHE", str(tmp_path / "cache"))
    x = images(*USUAL, batch=2)
    with opening(built, tiny_model, provider) as session:
        expected = session.run(x)
        on_device = torch.from_numpy(x).cuda()
        for _ in range(3):
            np.testing.assert_allclose(session.run_tensor(on_device).cpu().numpy(), expected, rtol=1e-4, atol=1e-5)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = session.run_tensor(on_device * 2 / 2)
        stream.synchronize()
        np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(session.run(x), expected, rtol=1e-4, atol=1e-5)
