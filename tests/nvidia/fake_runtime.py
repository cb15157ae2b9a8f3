"""A machine with an NVIDIA GPU, on the processor: the runtime half of TensorRT, CUDA's runtime API and PyTorch's CUDA.

Device memory is host memory, a stream is a queue that runs when it is waited for, and a plan holds the ONNX graph,
which ONNX Runtime computes; so a session gives true numbers, and one that forgets to wait, frees too early or replays
a stale graph does not.

Names, signatures and answers are those of the real packages: tests/nvidia/test_fake_runtime.py compares them.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from mednext_edge.nvidia import devices, memory
from mednext_edge.nvidia.devices import CudaDevice
from tests.nvidia.fake_tensorrt import MAGIC, IHostMemory, ILogger, LayerInformationFormat, Severity, fake_module

FLOAT_BYTES = 4


def make_plan(
    graph: bytes,
    *,
    version: str = "10.3.0",
    arch: str = "8.6",
    min: Sequence[int],
    opt: Sequence[int] | None = None,
    max: Sequence[int] | None = None,
    hardware_compatibility: str = "none",
    version_compatible: bool = False,
) -> bytes:
    """A plan as the fake builder writes it; the sizes are whole input shapes."""
    stated = {
        "version": version,
        "arch": arch,
        "min": list(min),
        "opt": list(opt or min),
        "max": list(max or min),
        "hardware_compatibility": hardware_compatibility,
        "version_compatible": version_compatible,
    }
    return MAGIC + json.dumps(stated).encode() + b"\n" + graph


@dataclass
class Stream:
    """A queue of work; recording puts it into a list instead."""

    queue: list[Callable[[], None]] = field(default_factory=list)
    recording: list[Callable[[], None]] | None = None

    def put(self, work: Callable[[], None]) -> None:
        (self.queue if self.recording is None else self.recording).append(work)

    def wait(self) -> None:
        assert self.recording is None, "waiting is not permitted while a stream is recorded"
        while self.queue:
            self.queue.pop(0)()


class Gpu:
    """The device that all three fakes share.

    Args:
        capability: compute capability.
        memory: bytes on the device.
        recordable: whether streams can be recorded.
        count: devices of that kind.
    """

    def __init__(
        self, capability: str = "8.6", *, memory: int = 1 << 30, recordable: bool = True, count: int = 1
    ) -> None:
        self.devices = tuple(CudaDevice(i, f"Fake GPU {i}", capability, memory / 1e9) for i in range(count))
        self.capability = capability
        self.memory = memory
        self.recordable = recordable
        self.current = 0
        self.contexts: set[int] = set()
        self.allocated: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launches = 0
        self.shared_with_torch = False  # whose allocator is its own, so that no address is known here
        self.calls: list[str] = []
        self._handles = iter(range(1, 1 << 30))

    def new_stream(self) -> int:
        handle = next(self._handles)
        self.streams[handle] = Stream()
        return handle

    def new_graph(self, work: list[Callable[[], None]]) -> int:
        handle = next(self._handles)
        self.graphs[handle] = work
        return handle

    def launch(self, graph: int, stream: int) -> None:
        self.launches += 1
        for work in self.graphs[graph]:
            self.streams[stream].put(work)

    def allocate(self, size: int) -> int | None:
        if size + sum(ctypes.sizeof(block) for block in self.allocated.values()) > self.memory:
            return None
        return self._keep(self.allocated, size)

    def _keep(self, where: dict[int, Any], size: int) -> int:
        block = (ctypes.c_char * size)()
        address = ctypes.addressof(block)
        where[address] = block
        return address

    def floats(self, address: int, shape: Sequence[int]) -> Any:
        """The memory at an address as an array; it has to be allocated and large enough."""
        count = int(np.prod(shape))
        block = self.allocated.get(address)
        assert block is None or ctypes.sizeof(block) >= count * FLOAT_BYTES, "a kernel ran past the end of its buffer"
        assert block is not None or self.shared_with_torch, "a kernel ran on memory that is not allocated"
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Gpu:
        """Let the driver find it."""
        found = self.devices
        monkeypatch.setattr(devices, "devices", lambda: found)
        return self


# TensorRT --------------------------------------------------------------------------------------------------------


class Dims(tuple):  # type: ignore[type-arg]
    __slots__ = ()


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


@dataclass
class Faults:
    """What goes wrong: `runtime`, `context`, `execute`, `shape` or nothing."""

    at: str = ""
    words: str = "CUDA runtime: out of memory"


def add_runtime(module: Any, gpu: Gpu, *, rtx: bool, faults: Faults | None = None) -> ModuleType:
    """Give a module that builds plans what runs them; `module.deserialized` counts the plans that it was handed."""
    wrong = faults or Faults()
    module.deserialized = 0

    class EngineInspector:
        def __init__(self, graph: onnx.ModelProto) -> None:
            self._graph = graph

        def get_engine_information(self, format: Any) -> str:
            assert format is LayerInformationFormat.JSON
            layers = [
                {
                    "Name": node.name,
                    "LayerType": node.op_type,
                    "Inputs": [],
                    "Outputs": [{"Name": n, "Dimensions": [1], "Format/Datatype": "Float"} for n in node.output],
                    "Metadata": f"[ONNX Layer: {node.name}]",
                }
                for node in self._graph.graph.node
            ]
            return json.dumps({"Layers": layers, "Bindings": []})

    class IRuntimeCache:
        def __init__(self) -> None:
            self._kernels: set[str] = set()

        def serialize(self) -> IHostMemory:
            return IHostMemory(json.dumps(sorted(self._kernels)).encode())

        def deserialize(self, blob: Any) -> bool:
            assert gpu.contexts, "there has to be a CUDA context"
            try:
                self._kernels = set(json.loads(bytes(blob)))
            except ValueError:
                return False
            return True

    class IRuntimeConfig:
        __slots__ = ("_cache", "cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy")

        def __init__(self) -> None:
            self._cache: IRuntimeCache | None = None
            self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
            self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

        def create_runtime_cache(self) -> IRuntimeCache:
            return IRuntimeCache()

        def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
            self._cache = cache
            return True

        def get_runtime_cache(self) -> IRuntimeCache | None:
            return self._cache

    class IExecutionContext:
        def __init__(self, engine: Any, config: IRuntimeConfig | None) -> None:
            self._engine = engine
            self._config = config
            self._addresses: dict[str, int] = {}
            low, _, high = engine._profile
            self._shape: tuple[int, ...] | None = low if low == high else None
            self._state = 0

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            low, _, high = self._engine._profile
            inside = len(shape) == len(low) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
            if name != self._engine._input or not inside or wrong.at == "shape":
                self._engine._say(f"IExecutionContext::setInputShape: {shape} does not satisfy the profile")
                return False
            self._state += self._shape != tuple(shape)
            self._shape = tuple(shape)
            return True

        def get_tensor_shape(self, name: str) -> Dims:
            assert self._shape is not None, "the input has no shape yet"
            if name == self._engine._input:
                return Dims(self._shape)
            return Dims((1, self._engine._classes, *self._shape[2:]))

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._state += self._addresses.get(name) != memory
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            engine, shape = self._engine, self._shape
            if shape is None or len(self._addresses) != 2 or wrong.at == "execute":
                engine._say(wrong.words)
                return False
            state = self._state
            recorded = gpu.streams[stream_handle].recording is not None
            source, target = self._addresses[engine._input], self._addresses[engine._output]
            answer = (1, engine._classes, *shape[2:])
            cache = None if self._config is None else self._config.get_runtime_cache()
            if cache is not None:
                cache._kernels.add(f"{shape}")

            def kernels() -> None:
                assert self._state == state or not recorded, "a recorded graph outlived the state of its context"
                x = gpu.floats(source, shape)
                gpu.floats(target, answer)[:] = engine._session.run(None, {engine._input: x})[0]

            gpu.streams[stream_handle].put(kernels)
            return True

    class ICudaEngine:
        def __init__(self, plan: dict[str, Any], graph: bytes, say: Callable[[str], None]) -> None:
            self._profile = [tuple(plan[name]) for name in ("min", "opt", "max")]
            self._say = say
            self._graph = onnx.load_from_string(graph)
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            self._input = self._session.get_inputs()[0].name
            self._output = self._session.get_outputs()[0].name
            self._classes = self._session.get_outputs()[0].shape[1]

        @property
        def num_io_tensors(self) -> int:
            return 2

        def get_tensor_name(self, index: int) -> str:
            return str((self._input, self._output)[index])

        def get_tensor_mode(self, name: str) -> Any:
            return TensorIOMode.INPUT if name == self._input else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            value = (self._session.get_inputs() if name == self._input else self._session.get_outputs())[0]
            return DataType.FLOAT if value.type == "tensor(float)" else DataType.HALF

        def get_tensor_shape(self, name: str) -> Dims:
            low, _, high = self._profile
            sizes = [a if a == b else -1 for a, b in zip(low, high, strict=True)]
            return Dims(sizes if name == self._input else (1, self._classes, *sizes[2:]))

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
            assert (name, profile_index) == (self._input, 0)
            return [Dims(shape) for shape in self._profile]

        def create_engine_inspector(self) -> EngineInspector:
            return EngineInspector(self._graph)

        def create_execution_context(self, config: Any = None) -> IExecutionContext | None:
            if wrong.at == "context":
                self._say(wrong.words)
                return None
            return IExecutionContext(self, config)

        if rtx:

            def create_runtime_config(self) -> IRuntimeConfig:
                return IRuntimeConfig()

    class Runtime:
        def __init__(self, logger: Any) -> None:
            ILogger._check(logger)
            if wrong.at == "runtime":
                logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._logger = logger
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            module.deserialized += 1
            assert gpu.current in gpu.contexts, "there has to be a CUDA context"

            def say(words: str) -> None:
                self._logger.log(Severity.ERROR, words)

            if not serialized_engine.startswith(MAGIC):
                say("Serialization assertion magicTag failed")
                return None
            head, _, graph = serialized_engine[len(MAGIC) :].partition(b"\n")
            plan = json.loads(head)
            newer = plan["version_compatible"] and self.engine_host_code_allowed
            if plan["version"] != module.__version__ and not newer:
                say(f"The engine was built by version {plan['version']}")
                return None
            if plan["arch"] != gpu.capability and plan["hardware_compatibility"] != "ampere+":
                say(f"expecting compute {plan['arch']} got compute {gpu.capability}")
                return None
            return ICudaEngine(plan, graph, say)

    parts: list[Any] = [Runtime, ICudaEngine, IExecutionContext, EngineInspector, TensorIOMode, DataType]
    if rtx:
        parts += [IRuntimeConfig, IRuntimeCache, CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy]
    for part in parts:
        setattr(module, part.__name__, part)
    made: ModuleType = module
    return made


def install_tensorrt(
    monkeypatch: pytest.MonkeyPatch,
    gpu: Gpu,
    *,
    version: str = "10.3.0",
    rtx: bool = False,
    faults: Faults | None = None,
) -> ModuleType:
    """A module that is found as `tensorrt`, or as `tensorrt_rtx`, and builds and runs plans."""
    builder: Any = fake_module(version.partition(".post")[0], rtx=rtx, arch=gpu.capability)
    builder.__version__ = version
    module = add_runtime(builder, gpu, rtx=rtx, faults=faults)
    _import_as(monkeypatch, module)
    return module


def _import_as(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    module.__spec__ = ModuleSpec(module.__name__, None)  # other packages look for it to see what is installed
    monkeypatch.setitem(sys.modules, module.__name__, module)


# cuda-python -----------------------------------------------------------------------------------------------------


class cudaError_t(enum.Enum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorInvalidDevice = 101
    cudaErrorStreamCaptureUnsupported = 900


class cudaMemcpyKind(enum.Enum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.Enum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


def cuda_runtime(gpu: Gpu, *, old_driver: bool = False) -> Any:
    """`cuda.bindings.runtime` on host memory; every function answers a tuple that starts with its error code."""
    module: Any = ModuleType("cuda.bindings.runtime")
    module.arity = {}
    ok = (cudaError_t.cudaSuccess,)
    words = {cudaError_t.cudaErrorMemoryAllocation: b"out of memory"}

    def function(body: Callable[..., Any]) -> None:
        def call(*arguments: Any) -> Any:
            gpu.calls.append(body.__name__)
            if old_driver and not body.__name__.startswith("cudaGetError"):
                return (cudaError_t.cudaErrorInsufficientDriver, None)
            return body(*arguments)

        setattr(module, body.__name__, call)
        module.arity[body.__name__] = body.__code__.co_argcount

    @function
    def cudaGetErrorString(error: cudaError_t) -> Any:
        return (*ok, words.get(error, error.name.encode()))

    @function
    def cudaGetLastError() -> Any:
        return ok

    @function
    def cudaGetDevice() -> Any:
        return (*ok, gpu.current)

    @function
    def cudaSetDevice(device: int) -> Any:
        if device >= len(gpu.devices):
            return (cudaError_t.cudaErrorInvalidDevice,)
        gpu.current = device
        gpu.contexts.add(device)
        return ok

    @function
    def cudaMalloc(size: int) -> Any:
        address = gpu.allocate(size)
        return (*ok, address) if address is not None else (cudaError_t.cudaErrorMemoryAllocation, None)

    @function
    def cudaFree(address: int) -> Any:
        if address:
            del gpu.allocated[address]
        return ok

    @function
    def cudaHostAlloc(size: int, flags: int) -> Any:
        return (*ok, gpu._keep(gpu.pinned, size))

    @function
    def cudaFreeHost(address: int) -> Any:
        del gpu.pinned[address]
        return ok

    @function
    def cudaStreamCreateWithFlags(flags: int) -> Any:
        assert flags == module.cudaStreamNonBlocking
        return (*ok, gpu.new_stream())

    @function
    def cudaStreamDestroy(stream: int) -> Any:
        del gpu.streams[stream]
        return ok

    @function
    def cudaStreamSynchronize(stream: int) -> Any:
        gpu.streams[stream].wait()
        return ok

    @function
    def cudaMemcpyAsync(to: int, what: int, size: int, kind: cudaMemcpyKind, stream: int) -> Any:
        device, host = (to, what) if kind is cudaMemcpyKind.cudaMemcpyHostToDevice else (what, to)

        def copy() -> None:
            assert ctypes.sizeof(gpu.allocated[device]) >= size <= ctypes.sizeof(gpu.pinned[host])
            ctypes.memmove(to, what, size)

        gpu.streams[stream].put(copy)
        return ok

    @function
    def cudaStreamBeginCapture(stream: int, mode: cudaStreamCaptureMode) -> Any:
        assert mode is cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        gpu.streams[stream].recording = []
        return ok

    @function
    def cudaStreamEndCapture(stream: int) -> Any:
        work, gpu.streams[stream].recording = gpu.streams[stream].recording, None
        assert work is not None
        if not gpu.recordable:
            return (cudaError_t.cudaErrorStreamCaptureUnsupported, None)
        return (*ok, work)

    @function
    def cudaGraphInstantiate(graph: Any, flags: int) -> Any:
        return (*ok, gpu.new_graph(graph))

    @function
    def cudaGraphDestroy(graph: Any) -> Any:
        return ok

    @function
    def cudaGraphLaunch(graph: int, stream: int) -> Any:
        gpu.launch(graph, stream)
        return ok

    @function
    def cudaGraphExecDestroy(graph: int) -> Any:
        del gpu.graphs[graph]
        return ok

    module.cudaStreamNonBlocking = 1
    for kind in (cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode):
        setattr(module, kind.__name__, kind)
    return module


def install_cuda_python(monkeypatch: pytest.MonkeyPatch, gpu: Gpu, *, old_driver: bool = False) -> Any:
    """`cuda.bindings.runtime` as it is imported; PyTorch stays without CUDA."""
    runtime = cuda_runtime(gpu, old_driver=old_driver)
    outer: Any = ModuleType("cuda")
    bindings: Any = ModuleType("cuda.bindings")
    outer.bindings, bindings.runtime = bindings, runtime
    for module in (outer, bindings, runtime):
        _import_as(monkeypatch, module)
    return runtime


# PyTorch ---------------------------------------------------------------------------------------------------------


def install_torch_cuda(monkeypatch: pytest.MonkeyPatch, gpu: Gpu) -> None:
    """A PyTorch with CUDA, whose tensors lie in host memory; its copies run at once, its streams when waited for."""
    gpu.shared_with_torch = True
    default = gpu.new_stream()
    stack: list[int] = [default]

    class FakeStream:
        def __init__(self, device: torch.device, handle: int | None = None) -> None:
            self.cuda_stream = gpu.new_stream() if handle is None else handle

        def wait_stream(self, other: FakeStream) -> None:
            gpu.calls.append(f"{self.cuda_stream} waits for {other.cuda_stream}")
            gpu.streams[other.cuda_stream].wait()

        def synchronize(self) -> None:
            gpu.streams[self.cuda_stream].wait()

    class FakeGraph:
        def __init__(self) -> None:
            self.handle: int | None = None

        def replay(self) -> None:
            assert self.handle is not None
            gpu.launch(self.handle, stack[-1])
            gpu.streams[stack[-1]].wait()

        def reset(self) -> None:
            assert self.handle is not None
            del gpu.graphs[self.handle]

    @contextlib.contextmanager
    def graph(to: FakeGraph, *, stream: FakeStream, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        work: list[Callable[[], None]] = []
        gpu.streams[stream.cuda_stream].recording = work
        try:
            yield
        finally:
            gpu.streams[stream.cuda_stream].recording = None
        if not gpu.recordable:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore words")
        to.handle = gpu.new_graph(work)

    @contextlib.contextmanager
    def stream(which: FakeStream) -> Iterator[None]:
        stack.append(which.cuda_stream)
        try:
            # What PyTorch does here is done at once, so all that came before has to be done too.
            if gpu.streams[which.cuda_stream].recording is None:
                gpu.streams[which.cuda_stream].wait()
            yield
        finally:
            stack.pop()

    @contextlib.contextmanager
    def device(which: torch.device) -> Iterator[None]:
        gpu.contexts.add(gpu.current)
        yield

    real = torch.empty

    def empty(*arguments: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        made = real(*arguments, **options)
        if not pin_memory and made.numel() * FLOAT_BYTES > gpu.memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is.\nmore words")
        return made

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(memory, "torch_device", lambda index: torch.device("cpu"))
    for name, fake in {
        "is_available": lambda: True,
        "device": device,
        "Stream": FakeStream,
        "stream": stream,
        "current_stream": lambda device: FakeStream(device, default),
        "CUDAGraph": FakeGraph,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
