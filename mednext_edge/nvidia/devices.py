"""The NVIDIA devices of this machine, asked of the driver itself: no CUDA package is needed.

The functions are those of the CUDA driver API, section "Device Management"; the driver honours
`CUDA_VISIBLE_DEVICES`, so the indices are those that TensorRT and PyTorch count in.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mednext_edge.errors import TargetUnavailableError, UsageError

_SUCCESS = 0
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NAME_LENGTH = 256
_JETSON_RELEASE = Path("/etc/nv_tegra_release")
_JETPACKS = {32: 4, 34: 5, 35: 5, 36: 6, 38: 7}
"""Major release of Jetson Linux (L4T) to major version of the JetPack that brings it."""


@dataclass(frozen=True)
class CudaDevice:
    """One GPU.

    Attributes:
        index: as CUDA counts.
        name: as the driver gives it.
        capability: compute capability, such as `8.6`.
        memory_gb: of the device in 1e9 bytes; a Jetson shares it with the processor.
    """

    index: int
    name: str
    capability: str
    memory_gb: float

    def __str__(self) -> str:
        return f"{self.name} (sm_{self.capability.replace('.', '')}, {self.memory_gb:.0f} GB)"


def load_driver() -> Any:
    """The driver's library, initialised; None where there is no driver, or one without a device."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return None
    return driver if driver.cuInit(0) == _SUCCESS else None


def devices(load: Callable[[], Any] = load_driver) -> tuple[CudaDevice, ...]:
    """Every CUDA device that this process may use; empty without a driver.

    Raises:
        TargetUnavailableError: the driver is there but does not answer.
    """
    driver = load()
    if driver is None:
        return ()
    count = ctypes.c_int()
    _check("cuDeviceGetCount", driver.cuDeviceGetCount(ctypes.byref(count)))
    return tuple(_device(driver, index) for index in range(count.value))


def driver_version(load: Callable[[], Any] = load_driver) -> str | None:
    """The newest CUDA that the driver supports, such as `13.0`; None without a driver.

    Raises:
        TargetUnavailableError: the driver is there but does not answer.
    """
    driver = load()
    if driver is None:
        return None
    version = ctypes.c_int()
    _check("cuDriverGetVersion", driver.cuDriverGetVersion(ctypes.byref(version)))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def find_device(name: str | None) -> CudaDevice:
    """The device of a name: `cuda`, `cuda:1`, `GPU`, `GPU:1` in any case; None is the first.

    Raises:
        UsageError: no such name.
        TargetUnavailableError: this machine has no such device.
    """
    found = re.fullmatch(r"(?:cuda|gpu)(?::(\d+))?", ("cuda" if name is None else name).lower())
    if found is None:
        raise UsageError(f"found the device `{name}`; a TensorRT engine runs on `cuda`, or on `cuda:1` and so on")
    index = int(found.group(1) or 0)
    present = devices()
    if not present:
        raise TargetUnavailableError(
            "found no NVIDIA GPU; a TensorRT engine needs one, with its driver. In a container, start it with the GPU"
            " (`docker run --gpus all`); without a GPU, export for `openvino` or `onnx`"
        )
    if index >= len(present):
        raise TargetUnavailableError(
            f"found no device `{name}`; this machine has "
            + ", ".join(f"cuda:{device.index} {device}" for device in present)
        )
    return present[index]


def jetson(file: Path = _JETSON_RELEASE) -> str | None:
    """Which JetPack this Jetson runs, such as `JetPack 6 (Jetson Linux 36.4.0)`; None on anything else."""
    if not file.is_file():
        return None
    # For example: # R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, ...
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", file.read_text(errors="replace"))
    if found is None:
        return "Jetson"
    linux = f"Jetson Linux {found.group(1)}.{found.group(2)}"
    jetpack = _JETPACKS.get(int(found.group(1)))
    return linux if jetpack is None else f"JetPack {jetpack} ({linux})"


def _device(driver: Any, index: int) -> CudaDevice:
    handle = ctypes.c_int()
    _check("cuDeviceGet", driver.cuDeviceGet(ctypes.byref(handle), index))
    name = ctypes.create_string_buffer(_NAME_LENGTH)
    _check("cuDeviceGetName", driver.cuDeviceGetName(name, _NAME_LENGTH, handle))
    memory = ctypes.c_size_t()
    _check("cuDeviceTotalMem", driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle))
    capability = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        value = ctypes.c_int()
        _check("cuDeviceGetAttribute", driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle))
        capability.append(str(value.value))
    return CudaDevice(index, name.value.decode(errors="replace"), ".".join(capability), memory.value / 1e9)


def _check(call: str, code: int) -> None:
    if code != _SUCCESS:
        raise TargetUnavailableError(
            f"the NVIDIA driver answered {call} with error {code}; `nvidia-smi` may say why. Reinstall it if so"
        )
