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

    Example:

    - `mednext-edge doctor --json > machine.json`
    """
    import psutil

    import mednext_edge.export.export  # noqa: F401  # every target puts itself into the table
    from mednext_edge.environment import environment
    from mednext_edge.export.targets import TARGETS

    here = environment()
    free = {"memory_gb": psutil.virtual_memory().available / 1e9, "disk_gb": shutil.disk_usage(Path.cwd()).free / 1e9}
    targets = [_state(name, entry.package) for name, entry in TARGETS.items()]
    targets += [TargetState(target=name, verdict="not in this release", detail="-") for name in LATER]
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


def _state(target: str, package: str) -> TargetState:
    """What a target can do here: run where its package finds a device, else only be written, else neither."""
    try:
        devices = DEVICES[target]()
    except ImportError as error:
        return TargetState(target=target, verdict="missing", detail=f"pip install {package} ({error})")
    except Exception as error:  # a vendor's library fails in its own ways, and the report must go on
        return TargetState(target=target, verdict="builds only", detail=f"no device could be asked: {error}")
    verdict: Verdict = "usable" if devices else "builds only"
    return TargetState(target=target, verdict=verdict, detail=", ".join(devices) or "no device found")


def _openvino_devices() -> list[str]:
    import openvino

    core: Any = openvino.Core()
    return [f"{name} ({core.get_property(name, 'FULL_DEVICE_NAME').strip()})" for name in core.available_devices]


def _onnx_devices() -> list[str]:
    import onnx
    import onnxruntime

    # Azure's provider calls a remote service; it is listed everywhere and is no device.
    providers = [name for name in onnxruntime.get_available_providers() if name != "AzureExecutionProvider"]
    return [f"onnx {onnx.__version__}", *providers]


DEVICES: dict[str, Callable[[], list[str]]] = {"openvino": _openvino_devices, "onnx": _onnx_devices}
LATER = ("trt", "trt-rtx")


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
