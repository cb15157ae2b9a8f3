"""What each target can do on this machine: one function a target, each of which asks the library that runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mednext_edge.errors import ExportError, MednextEdgeError, TargetUnavailableError
from mednext_edge.task import Frozen

Verdict = Literal["usable", "builds only", "missing"]


class TargetState(Frozen):
    """One target on this machine; `detail` lists its devices, or says what to install."""

    target: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True)
class Found:
    """A target's library and the devices that it can run on.

    Attributes:
        devices: in words.
        otherwise: the verdict when there are none.
        words: the detail that goes with it.
    """

    devices: list[str]
    otherwise: Verdict = "builds only"
    words: str = "no device found"


def openvino() -> Found:
    import openvino

    core: Any = openvino.Core()
    return Found([f"{name} ({core.get_property(name, 'FULL_DEVICE_NAME').strip()})" for name in core.available_devices])


FAST = ("avx_vnni", "avx512_vnni", "avx512_bf16", "amx")
"""Instruction sets for which the native engine has INT8 products of its own."""


def native() -> Found:
    from mednext_edge.ops import cpu_library

    isa = cpu_library.isa()
    return Found([f"CPU ({isa}{'' if isa in FAST else '; its INT8 is made for VNNI'})"])


def onnx() -> Found:
    import onnx
    import onnxruntime

    # Azure's provider calls a remote service; it is listed everywhere and is no device.
    providers = [name for name in onnxruntime.get_available_providers() if name != "AzureExecutionProvider"]
    return Found([f"onnx {onnx.__version__}", *providers])


def tensorrt() -> Found:
    """TensorRT builds for the GPU that is here, so without one it does nothing."""
    from mednext_edge.nvidia.devices import devices
    from mednext_edge.nvidia.providers import PROVIDERS

    provider = PROVIDERS["tensorrt"]
    name = f"{provider.title} {provider.version}"
    here = devices()
    if not here:
        words = f"{name} found no NVIDIA GPU; a bundle written here is built with `mednext-edge build` on the device"
        return Found([], "missing", words)
    problem = _memory_problem()
    if problem is not None:
        return Found([], "missing", f"{name}: {problem}")
    return Found([f"{name}: {', '.join(map(str, here))}"])


def tensorrt_rtx() -> Found:
    """TensorRT for RTX builds anywhere and runs on the GPUs that it can build for."""
    from mednext_edge.nvidia.architectures import supported
    from mednext_edge.nvidia.devices import devices
    from mednext_edge.nvidia.providers import PROVIDERS

    provider = PROVIDERS["tensorrt-rtx"]
    module = provider.load()
    archs = supported(module)
    builds = f"{provider.title} {module.__version__} builds for {', '.join(archs)}"
    here = [device for device in devices() if device.capability in archs]
    problem = _memory_problem() if here else "no such GPU here to run on"
    if problem is not None:
        return Found([], words=f"{builds}; {problem}")
    return Found([f"{builds}: {', '.join(map(str, here))}"])


def _memory_problem() -> str | None:
    """Why nothing here can hold memory on the GPU; None if something can."""
    from mednext_edge.nvidia.memory import open_memory

    try:
        open_memory(0).close()
    except (TargetUnavailableError, ExportError) as error:
        return str(error)
    return None


PROBES: dict[str, Callable[[], Found]] = {
    "openvino": openvino,
    "native": native,
    "onnx": onnx,
    "trt": tensorrt,
    "trt-rtx": tensorrt_rtx,
}
"""By target."""


def cuda_kernels() -> str:
    """Our CUDA kernels, in words: whether the package has them, and what to do where it has not."""
    from mednext_edge.ops import cuda_library

    try:
        cuda_library.library()
    except MednextEdgeError as error:
        return str(error)
    return "built"


NOTES = (
    "TensorRT 11 has no DLA: a Jetson's deep learning accelerators need TensorRT 10, the GPU does not",
    "JetPack 6 brings TensorRT 10.3; TensorRT 11.4.1 needs JetPack 7.2.2 or newer",
    "TensorRT for RTX has no sm_87, sm_90, sm_100 and sm_110 (Jetson Orin, Hopper, data-centre Blackwell, Jetson "
    "Thor): there `--target trt` is built on the device",
)
"""What to know about the NVIDIA targets, wherever they are planned from."""


def state(target: str, package: str) -> TargetState:
    """What a target can do here: run where its library finds a device, else what the probe says.

    Args:
        package: what to give to pip when the library is missing.
    """
    try:
        found = PROBES[target]()
    except ImportError as error:
        return TargetState(target=target, verdict="missing", detail=f"pip install {package} ({error})")
    except TargetUnavailableError as error:
        return TargetState(target=target, verdict="missing", detail=str(error))
    except Exception as error:  # a vendor's library fails in its own ways, and the report must go on
        return TargetState(target=target, verdict="builds only", detail=f"no device could be asked: {error}")
    if found.devices:
        return TargetState(target=target, verdict="usable", detail=", ".join(found.devices))
    return TargetState(target=target, verdict=found.otherwise, detail=found.words)
