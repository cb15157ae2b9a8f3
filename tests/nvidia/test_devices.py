"""What the driver is asked, and what a machine without one answers."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from mednext_edge.errors import TargetUnavailableError, UsageError
from mednext_edge.nvidia import devices as module
from mednext_edge.nvidia.devices import CudaDevice, devices, driver_version, find_device, jetson


class Driver:
    """The driver's C functions; `fails` is one that answers with an error."""

    def __init__(self, count: int = 2, fails: str = "") -> None:
        self.count = count
        self.fails = fails

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cu") and name == object.__getattribute__(self, "fails"):
            return lambda *_: 999
        return object.__getattribute__(self, name)

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12060
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = 10 + ordinal
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: ctypes.c_int) -> int:
        assert length == ctypes.sizeof(name)
        name.value = f"NVIDIA RTX A{device.value}00".encode()
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: ctypes.c_int) -> int:
        assert ctypes.sizeof(size._obj) == ctypes.sizeof(ctypes.c_size_t)
        size._obj.value = 24 * 10**9
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: ctypes.c_int) -> int:
        value._obj.value = {75: 8, 76: device.value - 4}[attribute]
        return 0


def test_devices() -> None:
    assert devices(Driver) == (
        CudaDevice(0, "NVIDIA RTX A1000", "8.6", 24.0),
        CudaDevice(1, "NVIDIA RTX A1100", "8.7", 24.0),
    )
    assert str(devices(Driver)[0]) == "NVIDIA RTX A1000 (sm_86, 24 GB)"
    assert driver_version(Driver) == "12.6"


def test_no_driver_no_devices() -> None:
    assert devices(lambda: None) == ()
    assert driver_version(lambda: None) is None
    assert devices(lambda: Driver(count=0)) == ()


@pytest.mark.parametrize("code", [0, 100])
def test_a_driver_without_a_device_is_none(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    driver = Driver()
    monkeypatch.setattr(driver, "cuInit", lambda flags: code)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert module.load_driver() is (driver if code == 0 else None)


def test_the_library_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert devices() == ()


@pytest.mark.parametrize(
    "call",
    ["cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceTotalMem_v2", "cuDeviceGetAttribute"],
)
def test_a_driver_that_fails(call: str) -> None:
    with pytest.raises(
        TargetUnavailableError, match=rf"answered {call.removesuffix('_v2')} with error 999; `nvidia-smi`"
    ):
        devices(lambda: Driver(fails=call))
    with pytest.raises(TargetUnavailableError, match="cuDriverGetVersion"):
        driver_version(lambda: Driver(fails="cuDriverGetVersion"))


@pytest.mark.parametrize(
    ("name", "index"), [(None, 0), ("cuda", 0), ("CUDA", 0), ("GPU", 0), ("cuda:0", 0), ("cuda:1", 1), ("GPU:1", 1)]
)
def test_names(monkeypatch: pytest.MonkeyPatch, name: str | None, index: int) -> None:
    monkeypatch.setattr(module, "devices", lambda: devices(Driver))
    assert find_device(name).index == index


@pytest.mark.parametrize("name", ["CPU", "cuda:", "cuda:-1", "cuda:one", "cuda0", ""])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UsageError, match=f"found the device `{name}`; a TensorRT engine runs on `cuda`"):
        find_device(name)


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        (
            "# R36 (release), REVISION: 4.0, GCID: 3753, BOARD: generic, EABI: aarch64",
            "JetPack 6 (Jetson Linux 36.4.0)",
        ),
        ("# R35 (release), REVISION: 6.1, GCID: 1", "JetPack 5 (Jetson Linux 35.6.1)"),
        ("# R38 (release), REVISION: 2.0, GCID: 1", "JetPack 7 (Jetson Linux 38.2.0)"),
        ("# R99 (release), REVISION: 1.0, GCID: 1", "Jetson Linux 99.1.0"),
        ("something else", "Jetson"),
    ],
)
def test_jetson(tmp_path: Path, release: str, expected: str) -> None:
    (tmp_path / "nv_tegra_release").write_text(release + "\n# KERNEL_VARIANT: oot\n")
    assert jetson(tmp_path / "nv_tegra_release") == expected
    assert jetson(tmp_path / "absent") is None
