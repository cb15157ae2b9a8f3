"""`mednext-edge doctor`."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import pytest

from mednext_edge import cpu
from mednext_edge.cli import probes
from mednext_edge.cli.probes import Found
from mednext_edge.errors import TargetUnavailableError
from mednext_edge.export.export import TARGETS
from mednext_edge.nvidia import devices
from mednext_edge.ops import cuda_library
from tests.nvidia import fake_runtime as fake
from tests.nvidia.fake_runtime import Gpu

from .conftest import Cli

VNNI, BF16 = "INT8 dot-product", "computes in bf16"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without NVIDIA's hardware and packages, until a test gives it some."""
    Gpu(count=0).install(monkeypatch)
    monkeypatch.setattr(devices, "driver_version", lambda: None)
    monkeypatch.setattr(devices, "jetson", lambda: None)
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)


def target(edge: Cli, name: str) -> tuple[str, str]:
    """(verdict, detail) of a target."""
    return next((t["verdict"], t["detail"]) for t in edge("doctor", "--json").json["targets"] if t["target"] == name)


def test_json(edge: Cli) -> None:
    done = edge("doctor", "--json")
    assert done.code == 0
    found = done.json
    assert found["environment"]["python"] == platform.python_version()
    assert found["environment"]["isa"] == list(cpu.features())
    assert found["free"]["disk_gb"] > 0
    verdicts = {target["target"]: target["verdict"] for target in found["targets"]}
    here = dict.fromkeys(("openvino", "native", "onnx"), "usable")
    assert verdicts == here | {"trt": "missing", "trt-rtx": "missing"}
    assert any("CPU" in target["detail"] for target in found["targets"] if target["target"] == "openvino")
    assert found["nvidia"] == {"gpus": [], "cuda": None, "jetson": None, "problem": None}
    assert found["notes"] == list(probes.NOTES)


def test_words(edge: Cli) -> None:
    done = edge("doctor")
    assert (done.code, done.out) == (0, "")
    for words in ("processor", "memory", "openvino", "usable", "NVIDIA GPU", "none", "missing", "JetPack 6", "sm_87"):
        assert words in done.err


def test_cmake_prefix(edge: Cli) -> None:
    prefix = edge("doctor", "--json").json["cmake_prefix"]
    assert (Path(prefix) / "lib/cmake/mednext_edge/mednext_edgeConfig.cmake").is_file()


def test_cuda_kernels(edge: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_library, "library", lambda: None)
    assert edge("doctor", "--json").json["cuda_kernels"] == "built"

    def absent() -> Any:
        raise TargetUnavailableError("this package was built without CUDA kernels")

    monkeypatch.setattr(cuda_library, "library", absent)
    assert "built without CUDA kernels" in edge("doctor").err


def test_every_target_is_probed() -> None:
    assert set(probes.PROBES) == set(TARGETS)


def test_missing_package_says_what_to_install(edge: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    verdict, detail = target(edge, "openvino")
    assert verdict == "missing"
    assert detail.startswith(f"pip install {TARGETS['openvino'].package}")
    for name, package in (("trt", "tensorrt"), ("trt-rtx", "tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs")):
        verdict, detail = target(edge, name)
        assert verdict == "missing"
        assert detail.endswith(f"install it with `pip install {package}`")


@pytest.mark.parametrize(
    ("answer", "verdict", "detail"),
    [
        (Found([]), "builds only", "no device found"),
        (Found([], "missing", "plug one in"), "missing", "plug one in"),
        (Found(["one", "two"]), "usable", "one, two"),
        (RuntimeError("driver"), "builds only", "no device could be asked: driver"),
        (TargetUnavailableError("too old"), "missing", "too old"),
    ],
    ids=str,
)
def test_verdicts(edge: Cli, monkeypatch: pytest.MonkeyPatch, answer: Any, verdict: str, detail: str) -> None:
    def ask() -> Found:
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Found)
        return answer

    monkeypatch.setitem(probes.PROBES, "openvino", ask)
    assert target(edge, "openvino") == (verdict, detail)


def test_a_gpu_with_both_providers(edge: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("8.9", memory=24 * 10**9).install(monkeypatch)
    fake.install_cuda_python(monkeypatch, gpu)
    fake.install_tensorrt(monkeypatch, gpu, version="11.4.1")
    fake.install_tensorrt(monkeypatch, gpu, version="1.7.1", rtx=True)
    monkeypatch.setattr(devices, "driver_version", lambda: "13.0")
    assert target(edge, "trt") == ("usable", "TensorRT 11.4.1: Fake GPU 0 (sm_89, 24 GB)")
    assert target(edge, "trt-rtx") == (
        "usable",
        "TensorRT for RTX 1.7.1 builds for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1: Fake GPU 0 (sm_89, 24 GB)",
    )
    assert "Fake GPU 0 (sm_89, 24 GB); the driver supports CUDA 13.0" in edge("doctor").err


def test_providers_without_a_gpu(edge: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT needs the GPU even to build; TensorRT for RTX does not."""
    gpu = Gpu(count=0)
    fake.install_tensorrt(monkeypatch, gpu)
    fake.install_tensorrt(monkeypatch, gpu, version="1.7.1", rtx=True)
    verdict, detail = target(edge, "trt")
    assert verdict == "missing"
    assert "TensorRT 10.3.0 found no NVIDIA GPU; " in detail
    assert "`mednext-edge build` on the device" in detail
    verdict, detail = target(edge, "trt-rtx")
    assert verdict == "builds only"
    assert detail.endswith("builds for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1; no such GPU here to run on")


def test_a_jetson(edge: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("8.7", memory=64 * 10**9).install(monkeypatch)
    fake.install_cuda_python(monkeypatch, gpu)
    fake.install_tensorrt(monkeypatch, gpu)
    fake.install_tensorrt(monkeypatch, gpu, version="1.7.1", rtx=True)
    monkeypatch.setattr(devices, "jetson", lambda: "JetPack 6 (Jetson Linux 36.4.0)")
    assert target(edge, "trt")[0] == "usable"
    assert target(edge, "trt-rtx")[0] == "builds only"
    assert "JetPack 6 (Jetson Linux 36.4.0)" in edge("doctor").err


def test_a_gpu_that_nothing_can_hold_memory_on(edge: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu().install(monkeypatch)
    fake.install_tensorrt(monkeypatch, gpu)
    fake.install_tensorrt(monkeypatch, gpu, version="1.7.1", rtx=True)
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    for name, expected in (("trt", "missing"), ("trt-rtx", "builds only")):
        verdict, detail = target(edge, name)
        assert verdict == expected
        assert "Install `cuda-python`" in detail


def test_a_driver_that_does_not_answer(edge: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> Any:
        raise TargetUnavailableError("the NVIDIA driver answered with error 999")

    monkeypatch.setattr(devices, "devices", ask)
    found = edge("doctor", "--json")
    assert found.code == 0
    assert found.json["nvidia"]["problem"] == "the NVIDIA driver answered with error 999"
    assert "error 999" in edge("doctor").err


@pytest.mark.parametrize(
    ("isa", "expected"),
    [
        (("avx2",), {VNNI}),
        (("avx2", "avx_vnni"), set()),
        (("avx2", "avx512", "avx512_vnni"), set()),
        (("avx2", "avx512", "avx512_vnni", "avx512_bf16"), {BF16}),
        (("avx512", "avx512_vnni", "amx_int8", "amx_bf16"), {BF16}),
    ],
)
def test_warnings_follow_the_instructions(
    edge: Cli, monkeypatch: pytest.MonkeyPatch, isa: tuple[str, ...], expected: set[str]
) -> None:
    monkeypatch.setattr(cpu, "features", lambda: isa)
    warnings = edge("doctor", "--json").json["warnings"]
    assert len(warnings) == len(expected)
    assert all(any(words in warning for warning in warnings) for words in expected)
