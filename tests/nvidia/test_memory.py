"""Device memory from either package, on a fake GPU: copies, order, recordings, and what goes wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest

from mednext_edge.errors import ExportError, TargetUnavailableError
from mednext_edge.nvidia.memory import CudaMemory, Memory, TorchMemory, open_memory
from tests.nvidia import fake_runtime as fake
from tests.nvidia.fake_runtime import Gpu

SHAPE = (1, 2, 3)
Opened = Callable[..., tuple[Gpu, Memory]]


@pytest.fixture(params=["cuda-python", "torch"])
def opened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """A GPU and its memory."""

    def make(**properties: int | bool) -> tuple[Gpu, Memory]:
        gpu = Gpu(**properties)  # type: ignore[arg-type]
        if request.param == "torch":
            fake.install_torch_cuda(monkeypatch, gpu)
        else:
            fake.install_cuda_python(monkeypatch, gpu)
        return gpu, open_memory(0)

    return make


def double(gpu: Gpu, memory: Memory, source: int, target: int) -> None:
    """A kernel: put on the stream, or into the recording."""

    def kernel() -> None:
        gpu.floats(target, SHAPE)[:] = 2 * gpu.floats(source, SHAPE)

    gpu.streams[memory.stream].put(kernel)


def test_there_and_back(opened: Opened) -> None:
    gpu, memory = opened()
    source, target = memory.buffer(SHAPE), memory.buffer(SHAPE)
    assert source.host.shape == SHAPE
    assert source.host.dtype == np.float32
    source.host[:] = np.arange(6).reshape(SHAPE)
    source.upload()
    double(gpu, memory, source.address, target.address)
    target.download()
    memory.synchronize()
    np.testing.assert_array_equal(target.host.ravel(), [0, 2, 4, 6, 8, 10])
    source.free()
    target.free()
    memory.close()
    assert not gpu.allocated
    assert not gpu.pinned


def test_a_recording_is_not_run_until_it_is_replayed(opened: Opened) -> None:
    gpu, memory = opened()
    source, target = memory.buffer(SHAPE), memory.buffer(SHAPE)
    target.host[:] = -1
    target.upload()
    recording = memory.capture(lambda: double(gpu, memory, source.address, target.address))
    target.download()
    memory.synchronize()
    assert (target.host == -1).all()
    for value in (1, 2, 3):
        source.host[:] = value
        source.upload()
        recording.replay()
        target.download()
        memory.synchronize()
        assert (target.host == 2 * value).all()
    recording.free()
    assert not gpu.graphs


def test_what_cannot_be_recorded(opened: Opened) -> None:
    gpu, memory = opened(recordable=False)
    with pytest.raises(ExportError, match=r"(?i)capture|capturing"):
        memory.capture(lambda: None)
    source = memory.buffer(SHAPE)
    source.upload()
    memory.synchronize()
    assert not gpu.graphs


def test_an_error_while_recording_ends_it(opened: Opened) -> None:
    gpu, memory = opened()

    def refuse() -> None:
        raise ExportError("no")

    with pytest.raises(ExportError, match=r"^no$"):
        memory.capture(refuse)
    assert gpu.streams[memory.stream].recording is None
    memory.synchronize()


def test_out_of_memory(opened: Opened) -> None:
    gpu, memory = opened(memory=16)
    with pytest.raises(ExportError, match=r"out of memory.*Take a smaller --patch, close other programs"):
        memory.buffer(SHAPE)
    assert not gpu.allocated
    assert not gpu.pinned


def test_pinned_memory_that_is_refused_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    runtime = fake.install_cuda_python(monkeypatch, gpu)
    memory = CudaMemory(0)
    monkeypatch.setattr(runtime, "cudaHostAlloc", lambda *_: (fake.cudaError_t.cudaErrorMemoryAllocation, None))
    with pytest.raises(ExportError, match=r"cudaHostAlloc failed with cudaErrorMemoryAllocation \(out of memory\)"):
        memory.buffer(SHAPE)
    assert not gpu.allocated


def test_the_callers_device_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(count=3)
    fake.install_cuda_python(monkeypatch, gpu)
    gpu.current = 2
    memory = open_memory(1)
    with memory.current():
        assert gpu.current == 1
        memory.buffer(SHAPE).free()
        assert gpu.current == 1
    assert gpu.current == 2


def test_pytorch_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    fake.install_cuda_python(monkeypatch, gpu)
    assert isinstance(open_memory(0), CudaMemory)
    fake.install_torch_cuda(monkeypatch, gpu)
    assert isinstance(open_memory(0), TorchMemory)


def test_neither_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        TargetUnavailableError,
        match=r"this PyTorch has no CUDA; cuda-python is not usable here .*Install `cuda-python`",
    ):
        open_memory(0)


def test_a_driver_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    fake.install_cuda_python(monkeypatch, Gpu(), old_driver=True)
    with pytest.raises(
        TargetUnavailableError, match=r"cudaErrorInsufficientDriver.*driver is older than this cuda-python"
    ):
        open_memory(0)


def test_other_errors_by_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fake.install_cuda_python(monkeypatch, Gpu())
    with pytest.raises(ExportError, match=r"cudaSetDevice failed with cudaErrorInvalidDevice .* on cuda:5"):
        open_memory(5)
