"""`mednext-edge doctor`: what this machine is, which targets it can build and run, and what to know about it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from mednext_edge.cli.console import JSON_OPTION, emit_json, show_facts, show_table, show_warning
from mednext_edge.task import Frozen

Verdict = Literal["usable", "builds only", "missing", "not in this release"]


class TargetState(Frozen):
    """One target on this machine; `detail` lists its devices, or says what to install."""

    target: str
    verdict: Verdict
    detail: str


def doctor(json: Annotated[bool, JSON_OPTION] = False) -> None:
    """Look at this machine: processor, memory, disk, and what each export target can do here.

    Example: mednext-edge doctor --json > machine.json
    """
    import psutil

    from mednext_edge.environment import environment

    here = environment()
    free = {"memory_gb": psutil.virtual_memory().available / 1e9, "disk_gb": shutil.disk_usage(Path.cwd()).free / 1e9}
    targets = [probe() for probe in PROBES]
    warnings = _warnings(set(here.isa))
    if json:
        free = {name: round(value, 1) for name, value in free.items()}
        emit_json({"environment": here, "free": free, "targets": targets, "warnings": warnings})
        return
    show_facts(
        "This machine",
        [
            ("system", here.platform),
            ("python", here.python),
            ("processor", here.cpu),
            ("cores", f"{here.usable_cores} usable of {here.logical_cores} logical"),
            ("instructions", ", ".join(here.isa) or "none of those that matter here"),
            ("memory", f"{free['memory_gb']:.1f} GB available of {here.memory_gb:.1f} GB"),
            ("disk", f"{free['disk_gb']:.1f} GB free in {Path.cwd()}"),
            ("packages", ", ".join(f"{name} {version}" for name, version in here.packages.items())),
        ],
    )
    show_table("Targets", ("target", "here", "detail"), [(t.target, t.verdict, t.detail) for t in targets])
    for warning in warnings:
        show_warning(warning)


def _state(target: str, package: str, devices: Callable[[], list[str]]) -> TargetState:
    """The verdict of a target that runs wherever its package finds a device."""
    try:
        found = devices()
    except ImportError as error:
        return TargetState(target=target, verdict="missing", detail=f"pip install {package} ({error})")
    except Exception as error:  # a vendor's library may fail in its own way, and the report must go on
        return TargetState(target=target, verdict="builds only", detail=f"no device could be asked: {error}")
    verdict: Verdict = "usable" if found else "builds only"
    return TargetState(target=target, verdict=verdict, detail=", ".join(found) or "no device found")


def _openvino_devices() -> list[str]:
    import openvino

    core: Any = openvino.Core()
    return [f"{name} ({core.get_property(name, 'FULL_DEVICE_NAME').strip()})" for name in core.available_devices]


def _onnx_devices() -> list[str]:
    import onnx
    import onnxruntime

    return [f"onnx {onnx.__version__}", *onnxruntime.get_available_providers()]


def _later(target: str) -> TargetState:
    return TargetState(target=target, verdict="not in this release", detail="see CHANGELOG.md")


PROBES: tuple[Callable[[], TargetState], ...] = (
    lambda: _state("openvino", "openvino nncf", _openvino_devices),
    lambda: _state("onnx", "onnx onnxscript onnxruntime", _onnx_devices),
    lambda: _later("trt"),
    lambda: _later("trt-rtx"),
)


def _warnings(isa: set[str]) -> list[str]:
    """What the instruction sets mean for the figures that this machine gives."""
    warnings = []
    if isa & {"avx512_bf16", "amx_bf16"}:
        warnings.append(
            "this processor computes in bf16, and OpenVINO then runs fp32 models in bf16 by default; "
            "the FP32 baselines of this tool pin f32"
        )
    if not isa & {"avx_vnni", "avx512_vnni", "amx_int8"}:
        warnings.append(
            "this processor has no INT8 dot-product instructions (VNNI, AMX): INT8 makes the model smaller, "
            "but gains less speed here than on a processor that has them"
        )
    return warnings
