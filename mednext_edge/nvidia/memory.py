"""Device memory, a stream and recorded graphs on one CUDA device.

Two packages give them, and a machine may have either: PyTorch with CUDA, or NVIDIA's own `cuda-python`
(a Jetson, or a device where PyTorch would be the largest package by far). `open_memory` takes the first.
"""

from __future__ import annotations

import contextlib
import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mednext_edge.errors import ExportError, TargetUnavailableError

if TYPE_CHECKING:
    import torch

Array = NDArray[np.float32]

OUT_OF_MEMORY = "Take a smaller --patch, close other programs on this GPU, or choose another --device"
"""What to do when a device's memory is full."""


class Buffer(ABC):
    """Float32 memory twice: on the device at `address`, and pinned on the host as the array `host`.

    The copies are asynchronous and in the order of the stream.
    """

    address: int
    host: Array

    @abstractmethod
    def upload(self) -> None:
        """Host to device."""

    @abstractmethod
    def download(self) -> None:
        """Device to host; `host` holds it after `synchronize`."""

    @abstractmethod
    def free(self) -> None:
        """Give both back; `host` must not be touched afterwards."""


class Recording(ABC):
    """A CUDA graph: work that was put on the stream once, ready to be put there again in one call."""

    @abstractmethod
    def replay(self) -> None:
        """Put it on the stream."""

    @abstractmethod
    def free(self) -> None:
        """Give it back; nothing of it may be on the stream."""


class Memory(ABC):
    """What a session needs of a device; for one thread at a time.

    Attributes:
        stream: address of the CUDA stream that everything is ordered on.
    """

    stream: int

    @abstractmethod
    def current(self) -> contextlib.AbstractContextManager[None]:
        """Makes this the thread's current device, as TensorRT expects around every call."""

    @abstractmethod
    def buffer(self, shape: tuple[int, ...]) -> Buffer:
        """Raises ExportError when the memory is not there."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for the stream. Raises ExportError when something on it has failed."""

    @abstractmethod
    def capture(self, work: Callable[[], None]) -> Recording:
        """What `work` puts on the stream, recorded and not executed.

        Raises:
            ExportError: something in it cannot be recorded.
        """

    @abstractmethod
    def close(self) -> None:
        """Destroy the stream; buffers and recordings are freed before, by who made them."""


class TorchMemory(Memory):
    """PyTorch's allocator, so that tensors and engines share one pool.

    Args:
        index: of the device.

    Raises:
        TargetUnavailableError: PyTorch is not installed, or has no CUDA.
        ExportError: the device refuses a stream.
    """

    def __init__(self, index: int) -> None:
        try:
            import torch
        except ImportError as error:
            raise TargetUnavailableError(f"PyTorch is not usable here ({error})") from error
        if not torch.cuda.is_available():
            raise TargetUnavailableError("this PyTorch has no CUDA")
        self._torch = torch
        self.device = torch_device(index)
        with self.current():
            self._stream: torch.cuda.Stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self.stream = int(self._stream.cuda_stream)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        torch = self._torch
        try:
            with torch.cuda.device(self.device):
                yield
        except torch.OutOfMemoryError as error:
            raise ExportError(f"{self.device} is out of memory: {_line(error)}. {OUT_OF_MEMORY}") from error
        except RuntimeError as error:  # of any CUDA call inside PyTorch
            raise ExportError(f"CUDA failed on {self.device}: {_line(error)}") from error

    @contextlib.contextmanager
    def ordered(self) -> Iterator[None]:
        """What PyTorch does inside is put on this memory's stream."""
        with self.current(), self._torch.cuda.stream(self._stream):
            yield

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """This memory's stream takes its turn on the caller's: after what is on it now, before what comes."""
        with self.current():
            callers = self._torch.cuda.current_stream(self.device)
            self._stream.wait_stream(callers)
            yield
            callers.wait_stream(self._stream)

    def buffer(self, shape: tuple[int, ...]) -> Buffer:
        with self.ordered():
            return _TorchBuffer(self, shape)

    def synchronize(self) -> None:
        with self.current():
            self._stream.synchronize()

    def capture(self, work: Callable[[], None]) -> Recording:
        with self.current():
            graph = self._torch.cuda.CUDAGraph()
            # Other threads may go on using the device meanwhile.
            with self._torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                work()
        return _TorchRecording(self, graph)

    def close(self) -> None:
        self.synchronize()


class _TorchBuffer(Buffer):
    def __init__(self, memory: TorchMemory, shape: tuple[int, ...]) -> None:
        torch = memory._torch
        self._memory = memory
        self._device = torch.empty(shape, dtype=torch.float32, device=memory.device)
        self._pinned = torch.empty(shape, dtype=torch.float32, pin_memory=True)
        self.address = self._device.data_ptr()
        self.host = self._pinned.numpy()

    def upload(self) -> None:
        with self._memory.ordered():
            self._device.copy_(self._pinned, non_blocking=True)

    def download(self) -> None:
        with self._memory.ordered():
            self._pinned.copy_(self._device, non_blocking=True)

    def free(self) -> None:
        del self._device, self._pinned, self.host


class _TorchRecording(Recording):
    def __init__(self, memory: TorchMemory, graph: torch.cuda.CUDAGraph) -> None:
        self._memory = memory
        self._graph = graph

    def replay(self) -> None:
        with self._memory.ordered():
            self._graph.replay()

    def free(self) -> None:
        with self._memory.current():
            self._graph.reset()


class CudaMemory(Memory):
    """NVIDIA's `cuda-python`: the CUDA runtime API, every return code checked.

    Args:
        index: of the device.

    Raises:
        TargetUnavailableError: the package is not installed, or does not fit the driver.
        ExportError: the device refuses a stream.
    """

    def __init__(self, index: int) -> None:
        try:
            from cuda.bindings import runtime
        except (ImportError, RuntimeError) as error:  # RuntimeError: it did not find the library behind it
            raise TargetUnavailableError(f"cuda-python is not usable here ({error})") from error
        self._runtime: Any = runtime
        self._index = index
        with self.current():
            self._call("cudaFree", 0)  # makes the context of the device, which TensorRT expects to be there
            self._stream = self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        self.stream = int(self._stream)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        before = self._call("cudaGetDevice")
        self._call("cudaSetDevice", self._index)
        try:
            yield
        finally:
            self._call("cudaSetDevice", before)

    def buffer(self, shape: tuple[int, ...]) -> Buffer:
        with self.current():
            return _CudaBuffer(self, shape)

    def synchronize(self) -> None:
        with self.current():
            self._call("cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> Recording:
        runtime = self._runtime
        with self.current():
            # Other threads may go on using the device meanwhile.
            mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            self._call("cudaStreamBeginCapture", self._stream, mode)
            try:
                work()
            except BaseException:
                # Ends the recording, whose own error says less than the one on its way; it leaves no graph.
                runtime.cudaStreamEndCapture(self._stream)
                runtime.cudaGetLastError()
                raise
            recorded = self._call("cudaStreamEndCapture", self._stream)
            try:
                graph = self._call("cudaGraphInstantiate", recorded, 0)
            finally:
                self._call("cudaGraphDestroy", recorded)
        return _CudaRecording(self, graph)

    def close(self) -> None:
        with self.current():
            self._call("cudaStreamSynchronize", self._stream)
            self._call("cudaStreamDestroy", self._stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        """The result of a function of the CUDA runtime, None if it has none.

        Raises:
            TargetUnavailableError: the driver is older than the package.
            ExportError: any other error, by its name.
        """
        code, *values = getattr(self._runtime, name)(*arguments)
        errors = self._runtime.cudaError_t
        if code == errors.cudaSuccess:
            return values[0] if values else None
        words = self._runtime.cudaGetErrorString(code)[1]
        found = f"{name} failed with {code.name} ({words.decode() if isinstance(words, bytes) else words})"
        if code == errors.cudaErrorInsufficientDriver:
            raise TargetUnavailableError(f"{found}: the NVIDIA driver is older than this cuda-python")
        if code == errors.cudaErrorMemoryAllocation:
            raise ExportError(f"{found}. {OUT_OF_MEMORY}")
        raise ExportError(f"{found} on cuda:{self._index}")


class _CudaBuffer(Buffer):
    def __init__(self, memory: CudaMemory, shape: tuple[int, ...]) -> None:
        self._memory = memory
        count = int(np.prod(shape))
        self._bytes = count * np.dtype(np.float32).itemsize
        self.address = int(memory._call("cudaMalloc", self._bytes))
        try:
            self._pinned = int(memory._call("cudaHostAlloc", self._bytes, 0))
        except ExportError:
            memory._call("cudaFree", self.address)
            raise
        self.host = np.ctypeslib.as_array((ctypes.c_float * count).from_address(self._pinned)).reshape(shape)

    def upload(self) -> None:
        self._copy(self.address, self._pinned, "cudaMemcpyHostToDevice")

    def download(self) -> None:
        self._copy(self._pinned, self.address, "cudaMemcpyDeviceToHost")

    def free(self) -> None:
        del self.host
        with self._memory.current():
            self._memory._call("cudaFreeHost", self._pinned)
            self._memory._call("cudaFree", self.address)

    def _copy(self, to: int, what: int, kind: str) -> None:
        memory = self._memory
        with memory.current():
            direction = getattr(memory._runtime.cudaMemcpyKind, kind)
            memory._call("cudaMemcpyAsync", to, what, self._bytes, direction, memory._stream)


class _CudaRecording(Recording):
    def __init__(self, memory: CudaMemory, graph: Any) -> None:
        self._memory = memory
        self._graph = graph

    def replay(self) -> None:
        with self._memory.current():
            self._memory._call("cudaGraphLaunch", self._graph, self._memory._stream)

    def free(self) -> None:
        with self._memory.current():
            self._memory._call("cudaGraphExecDestroy", self._graph)


KINDS: tuple[Callable[[int], Memory], ...] = (TorchMemory, CudaMemory)
"""In the order of preference."""


def open_memory(index: int) -> Memory:
    """The first kind of memory that this machine has.

    Raises:
        TargetUnavailableError: none; says what to install.
        ExportError: the device refuses a stream.
    """
    reasons = []
    for kind in KINDS:
        try:
            return kind(index)
        except TargetUnavailableError as error:
            reasons.append(str(error))
    raise TargetUnavailableError(
        f"nothing here can hold memory on the GPU: {'; '.join(reasons)}. Install `cuda-python` in the version of the "
        "driver's CUDA, or PyTorch with CUDA"
    )


def torch_device(index: int) -> torch.device:
    """PyTorch's name of a CUDA device."""
    import torch

    return torch.device("cuda", index)


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
