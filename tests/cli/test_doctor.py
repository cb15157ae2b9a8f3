"""`mednext-edge doctor`."""

from __future__ import annotations

import platform
import sys
from typing import Any

import pytest

from mednext_edge import cpu
from mednext_edge.cli import doctor
from mednext_edge.export.targets import TARGETS

from .conftest import Cli

VNNI, BF16 = "INT8 dot-product", "computes in bf16"


def test_json(edge: Cli) -> None:
    done = edge("doctor", "--json")
    assert done.code == 0
    found = done.json
    assert found["environment"]["python"] == platform.python_version()
    assert found["environment"]["isa"] == list(cpu.features())
    assert found["free"]["disk_gb"] > 0
    verdicts = {target["target"]: target["verdict"] for target in found["targets"]}
    assert verdicts == {
        **dict.fromkeys(("openvino", "onnx"), "usable"),
        **dict.fromkeys(("trt", "trt-rtx"), "not in this release"),
    }
    assert any("CPU" in target["detail"] for target in found["targets"] if target["target"] == "openvino")


def test_words(edge: Cli) -> None:
    done = edge("doctor")
    assert (done.code, done.out) == (0, "")
    for words in ("processor", "memory", "openvino", "usable", "not in this release"):
        assert words in done.err


def test_every_target_of_the_table_is_probed() -> None:
    assert set(doctor.DEVICES) == set(TARGETS)
    assert not set(doctor.LATER) & set(TARGETS)


def test_missing_package_says_what_to_install(edge: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    target = next(t for t in edge("doctor", "--json").json["targets"] if t["target"] == "openvino")
    assert target["verdict"] == "missing"
    assert target["detail"].startswith(f"pip install {TARGETS['openvino'].package}")


@pytest.mark.parametrize(("devices", "detail"), [([], "no device found"), (RuntimeError("driver"), "driver")])
def test_target_without_a_device_only_builds(
    edge: Cli, monkeypatch: pytest.MonkeyPatch, devices: Any, detail: str
) -> None:
    def ask() -> list[str]:
        if isinstance(devices, Exception):
            raise devices
        return list(devices)

    monkeypatch.setitem(doctor.DEVICES, "openvino", ask)
    target = next(t for t in edge("doctor", "--json").json["targets"] if t["target"] == "openvino")
    assert target["verdict"] == "builds only"
    assert detail in target["detail"]


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
