"""TensorRT and TensorRT for RTX as engines, on one NVIDIA GPU."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from mednext_edge.errors import DataError, ExportError, TargetUnavailableError, UsageError
from mednext_edge.nvidia.devices import find_device
from mednext_edge.nvidia.kernel_cache import KernelCache
from mednext_edge.nvidia.logs import collected, logger
from mednext_edge.nvidia.memory import OUT_OF_MEMORY, Buffer, Memory, Recording, TorchMemory, open_memory
from mednext_edge.nvidia.providers import Provider
from mednext_edge.runtime.session import Array, Session
from mednext_edge.task import Task

if TYPE_CHECKING:
    import torch

    from mednext_edge.nvidia.inspect import EngineLayer

_LOG = logging.getLogger(__name__)
_ALIGNMENT = 256
"""Bytes; TensorRT takes no other addresses."""
_MEMORY_WORDS = re.compile(r"out.?of.?memory|cudaErrorMemoryAllocation|insufficient.*memory", re.IGNORECASE)


@dataclass
class _Bound:
    """The shape that the context stands at, with buffers for it; the recording is made at its second call."""

    shape: tuple[int, ...]
    source: Buffer
    target: Buffer
    calls: int = 0
    recording: Recording | None = None

    def free(self) -> None:
        if self.recording is not None:
            self.recording.free()
        self.source.free()
        self.target.free()


class TensorRtSession(Session):
    """A plan on a GPU; its one input and one output are found by their mode.

    Repeated calls with one shape replay a CUDA graph: a small network is bound by the launches of its kernels.
    For one thread at a time.

    Args:
        file: the plan; it is executable code, and its digest is checked by who opens the bundle.
        task: what it is for.
        precision: what it was exported as.
        provider: the package that runs it.
        provider_version: the version that built it.
        patch: spatial size to run at; None takes any that the plan was built for.
        device: `cuda`, `cuda:1`; None is the first.
        version_compatible: the plan was built to run in newer versions too. It then brings code of its own for the
            host, which is run.

    Attributes:
        smallest, largest: the patches that the plan was built for.

    Raises:
        TargetUnavailableError: the package or the device is not here, or the plan is of another version.
        UsageError: no such device name, or a patch that the plan was not built for.
        ExportError: TensorRT refuses the plan, or the device's memory is full.
    """

    def __init__(
        self,
        file: Path,
        task: Task,
        precision: str,
        *,
        provider: Provider,
        provider_version: str,
        patch: tuple[int, ...] | None = None,
        device: str | None = None,
        version_compatible: bool = False,
    ) -> None:
        self._trt = provider.load()
        _check_version(file, provider, provider_version, str(self._trt.__version__), version_compatible)
        self._device = find_device(device)
        self.task = task
        self.provider = f"{provider.name} {self._trt.__version__}"
        self.precision = precision
        self._memory: Memory | None = open_memory(self._device.index)
        self._bound: _Bound | None = None
        # TensorRT's own objects, each made from the one before.
        self._runtime: Any = None
        self._engine: Any = None
        self._kernels: _Kernels | None = None
        self._context: Any = None
        try:
            self._open(file, provider, version_compatible)
            self.patch = self._choose_patch(patch)
        except BaseException:
            self.close()
            raise

    def _open(self, file: Path, provider: Provider, version_compatible: bool) -> None:
        plan = file.read_bytes()
        with self._memory_here().current(), collected(self._trt) as errors:
            try:
                self._runtime = self._trt.Runtime(logger(self._trt))
            except TypeError as error:  # how the bindings tell that there is none
                raise _failed(f"{self.provider} cannot start", errors, "Update the NVIDIA driver") from error
            if version_compatible:
                self._runtime.engine_host_code_allowed = True
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise _failed(f"{self.provider} cannot load {file}", errors, f"Run `mednext-edge build {file.parent}`")
            dims = self.task.model.spatial_dims
            self._input = self._tensor("INPUT", self.task.model.in_channels, dims)
            self._output = self._tensor("OUTPUT", self.task.model.classes, len(self._answer((0,) * dims)) - 1)
            shape = tuple(self._engine.get_tensor_shape(self._input))
            open_size = min(shape) < 0
            profile = self._engine.get_tensor_profile_shape(self._input, 0) if open_size else [shape] * 3
            self.smallest, self.largest = tuple(profile[0])[2:], tuple(profile[2])[2:]
            self._kernels = _Kernels.of(self._trt, self._engine, plan, self._device.capability)
            self._context = self._create_context()
            if self._context is None:
                raise _failed(f"{self.provider} cannot start {file}", errors, OUT_OF_MEMORY)

    def _create_context(self) -> Any:
        if self._kernels is None:
            return self._engine.create_execution_context()
        return self._engine.create_execution_context(self._kernels.config)

    def _tensor(self, mode: str, channels: int, dims: int) -> str:
        """Name of the one input or output: float32, [1, channels, and so many spatial axes]."""
        engine, trt = self._engine, self._trt
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        found = [name for name in names if engine.get_tensor_mode(name) == getattr(trt.TensorIOMode, mode)]
        shapes = [tuple(engine.get_tensor_shape(name)) for name in found]
        dtypes = [engine.get_tensor_dtype(name) for name in found]
        # -1 is a size that the builder could not tell beforehand.
        fits = [len(s) == dims + 2 and s[0] in (1, -1) and s[1] in (channels, -1) for s in shapes]
        if fits != [True] or dtypes != [trt.DataType.FLOAT]:
            raise ExportError(
                f"found the {mode.lower()} tensors {found} of shapes {shapes} and types {dtypes} in this plan; "
                f"expected one of FLOAT with {channels} channels and {dims} spatial axes. Export again"
            )
        return str(found[0])

    def _answer(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Shape of the logits for one patch."""
        return self.task.model.output_shape(spatial)

    def _choose_patch(self, patch: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if patch is not None and not self._fits(patch):
            raise UsageError(self._misfit(patch))
        return self.smallest if self.smallest == self.largest else patch

    def _fits(self, patch: Sequence[int]) -> bool:
        sizes = zip(self.smallest, patch, self.largest, strict=False)
        return len(patch) == len(self.smallest) and all(low <= n <= high for low, n, high in sizes)

    def _misfit(self, patch: Sequence[int]) -> str:
        if self.smallest == self.largest:
            return (
                f"found a patch of {tuple(patch)}; this plan was built for {self.smallest} alone. Export with "
                "--min-patch and --max-patch"
            )
        return f"found a patch of {tuple(patch)}; this plan was built for {self.smallest} to {self.largest}"

    def _run(self, x: Array) -> Array:
        memory = self._memory_here()
        out = np.empty((len(x), *self._answer(x.shape[2:])), np.float32)
        with memory.current():
            for i in range(len(x)):
                bound = self._bind(x[i : i + 1].shape)
                np.copyto(bound.source.host, x[i : i + 1])
                bound.source.upload()
                self._launch(bound)
                bound.target.download()
                memory.synchronize()
                np.copyto(out[i : i + 1], bound.target.host)
        return out

    def run_tensor(self, x: torch.Tensor) -> torch.Tensor:
        """As `run` for tensors on this session's device, without waiting, and without a copy where they lie aligned.

        The work takes its turn on PyTorch's current stream.

        Args:
            x: [N, C, *patch]; other types than float32 are cast.

        Returns:
            Logits [N, classes, *patch], float32, on the same device.

        Raises:
            DataError: another device, or a shape that this session does not take.
            TargetUnavailableError: this PyTorch has no CUDA.
        """
        import torch

        memory = self._memory_here()
        if not isinstance(memory, TorchMemory):
            raise TargetUnavailableError("run_tensor needs PyTorch with CUDA, and this one has none; use run")
        if x.device != memory.device:
            raise DataError(f"found a tensor on {x.device}; this engine is on {memory.device}")
        self._check_shape(tuple(x.shape))
        x = x.to(torch.float32).contiguous()
        if len(x) > 1 and x[0, 0].nbytes % _ALIGNMENT:
            return torch.cat([self.run_tensor(x[i : i + 1]) for i in range(len(x))])
        if x.data_ptr() % _ALIGNMENT:
            x = x.clone()
        out = torch.empty((len(x), *self._answer(tuple(x.shape[2:]))), dtype=torch.float32, device=x.device)
        with memory.joined():
            self._release()  # its recording would not survive another use of the context
            for i in range(len(x)):
                self._stand_at((1, *x.shape[1:]))
                self._address(x[i].data_ptr(), out[i].data_ptr())
                self._enqueue()
        return out

    def layers(self) -> tuple[EngineLayer, ...]:
        """The layers as the builder fused them, with the precision of each."""
        from mednext_edge.nvidia.inspect import engine_layers

        with self._memory_here().current():
            layers: tuple[EngineLayer, ...] = engine_layers(self._trt, self._engine)
        return layers

    def close(self) -> None:
        if self._memory is None:
            return
        memory, self._memory = self._memory, None
        with memory.current():
            memory.synchronize()
            bound, self._bound = self._bound, None
            if bound is not None:
                bound.free()
            # Each before what it was made from.
            self._context = None
            self._kernels = None
            self._engine = None
            self._runtime = None
        memory.close()

    def _memory_here(self) -> Memory:
        assert self._memory is not None, "this session is closed"
        return self._memory

    def _bind(self, shape: tuple[int, ...]) -> _Bound:
        """The buffers of a shape, with the context standing at it."""
        if self._bound is None or self._bound.shape != shape:
            self._release()
            memory = self._memory_here()
            self._stand_at(shape)
            source = memory.buffer(shape)
            try:
                target = memory.buffer((1, *self._answer(shape[2:])))
            except BaseException:
                source.free()
                raise
            self._bound = _Bound(shape, source, target)
            self._address(source.address, target.address)
        return self._bound

    def _release(self) -> None:
        bound, self._bound = self._bound, None
        if bound is not None:
            self._memory_here().synchronize()
            bound.free()

    def _stand_at(self, shape: tuple[int, ...]) -> None:
        if not self._fits(shape[2:]):
            raise DataError(self._misfit(shape[2:]))
        with collected(self._trt) as errors:
            if not self._context.set_input_shape(self._input, shape):
                raise _failed(f"{self.provider} refuses an input of {shape}", errors)
        found, expected = tuple(self._context.get_tensor_shape(self._output)), (1, *self._answer(shape[2:]))
        if found != expected:
            raise ExportError(f"{self.provider} answers {shape} with logits of {found}; expected {expected}")

    def _address(self, source: int, target: int) -> None:
        with collected(self._trt) as errors:
            for name, address in ((self._input, source), (self._output, target)):
                if not self._context.set_tensor_address(name, address):
                    raise _failed(f"{self.provider} refuses the memory of `{name}`", errors)

    def _launch(self, bound: _Bound) -> None:
        """Run the network on the buffers: the first call as it is, which also settles the context; then recorded.

        TensorRT for RTX records by itself, once its kernels for the shape are compiled.
        """
        if bound.calls == 1 and self._kernels is None:
            bound.recording = self._record()
        bound.calls += 1
        if bound.recording is None:
            self._enqueue()
        else:
            bound.recording.replay()

    def _record(self) -> Recording | None:
        try:
            return self._memory_here().capture(self._enqueue)
        except ExportError as error:
            _LOG.warning("this plan cannot be recorded as a CUDA graph and runs without one: %s", error)
            return None

    def _enqueue(self) -> None:
        with collected(self._trt) as errors:
            if not self._context.execute_async_v3(self._memory_here().stream):
                raise _failed(f"{self.provider} could not run this plan", errors)
        if self._kernels is not None:
            self._kernels.keep(tuple(self._context.get_tensor_shape(self._input)))


class _Kernels:
    """How TensorRT for RTX compiles kernels on the device, and what it has compiled so far.

    Args:
        cache: where they are kept between runs.
    """

    def __init__(self, trt: ModuleType, engine: Any, cache: KernelCache) -> None:
        self._cache = cache
        self.config = engine.create_runtime_config()
        self.config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # At once: the stop-gap kernels of the lazy way round differently, and every patch shall be computed alike.
        self.config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self._compiled = self.config.create_runtime_cache()
        self._kept = cache.load()
        if self._kept is not None and not self._compiled.deserialize(self._kept):
            _LOG.info("the compiled kernels are of another driver or version; they are compiled again")
        self.config.set_runtime_cache(self._compiled)
        self._shapes: set[tuple[int, ...]] = set()

    @classmethod
    def of(cls, trt: ModuleType, engine: Any, plan: bytes, arch: str) -> _Kernels | None:
        """None for TensorRT, whose plans hold their kernels."""
        if not hasattr(trt, "CudaGraphStrategy"):
            return None
        return cls(trt, engine, KernelCache(plan, str(trt.__version__), arch))

    def keep(self, shape: tuple[int, ...]) -> None:
        """Write what has been compiled for a shape that has just been run, if that is news."""
        if shape in self._shapes:
            return
        self._shapes.add(shape)
        content = bytes(memoryview(self._compiled.serialize()))
        if content != self._kept:
            self._cache.save(content)
            self._kept = content


def _failed(what: str, errors: Sequence[str], advice: str = "") -> ExportError:
    """An error with TensorRT's own last words, and what to do."""
    words = "; ".join(line.strip() for line in errors[-3:]).rstrip(".") or "it gave no reason"
    if _MEMORY_WORDS.search(words):
        advice = OUT_OF_MEMORY
    return ExportError(f"{what}: {words}" + (f". {advice}" if advice else ""))


def _check_version(file: Path, provider: Provider, built: str, here: str, compatible: bool) -> None:
    """Raises TargetUnavailableError when a plan of one version cannot be read by another."""
    was, now = _number(built), _number(here)
    if was == now or (compatible and not provider.cross and was[:1] == now[:1] and was < now):
        return
    raise TargetUnavailableError(
        f"{file} was built by {provider.title} {built}, and this machine has {here}: plans do not go from one to the "
        f"other. Run `mednext-edge build {file.parent}`, or install {provider.title} {built}"
    )


def _number(version: str) -> tuple[int, ...]:
    """The numbers that a version starts with: `10.3.0.post1` is `10.3.0`."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()
