"""`mednext-edge doctor`: what this machine is, which targets it can build and run, and what to know about it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

from mednext_edge.cli.console import JSON_OPTION, emit_json, say, show_facts, show_table, show_warning
from mednext_edge.errors import TargetUnavailableError
from mednext_edge.task import Frozen


class Nvidia(Frozen):
    """The NVIDIA hardware of this machine.

    Attributes:
        gpus: in words, with architecture and memory.
        cuda: the newest CUDA that the driver supports; None without a driver.
        jetson: its JetPack; None on anything else.
        problem: why the driver could not be asked; None if it could, or if there is none.
    """

    gpus: tuple[str, ...] = ()
    cuda: str | None = None
    jetson: str | None = None
    problem: str | None = None

    def __str__(self) -> str:
        if self.problem is not None:
            return self.problem
        gpus = ", ".join(self.gpus) or "none"
        return "; ".join(filter(None, (gpus, self.cuda and f"the driver supports CUDA {self.cuda}", self.jetson)))


def doctor(json: Annotated[bool, JSON_OPTION] = False) -> None:
    """Look at this machine: processor, memory, disk, GPUs, and what each export target can do here.

    Example:

    - `mednext-edge doctor --json > machine.json`
    """
    import psutil

    import mednext_edge.export.export  # noqa: F401  # every target puts itself into the table
    from mednext_edge.cli.probes import NOTES, PROBES, cuda_kernels, state
    from mednext_edge.cpu import edge_library
    from mednext_edge.environment import environment
    from mednext_edge.export.targets import TARGETS

    here = environment()
    free = {"memory_gb": psutil.virtual_memory().available / 1e9, "disk_gb": shutil.disk_usage(Path.cwd()).free / 1e9}
    nvidia, kernels = _nvidia(), cuda_kernels()
    targets = [state(name, TARGETS[name].package) for name in PROBES]
    warnings = _warnings(set(here.isa))
    library = edge_library()
    prefix = None if library is None else str(library.parents[1])
    if json:
        free = {name: round(value, 1) for name, value in free.items()}
        report = {"environment": here, "free": free, "nvidia": nvidia, "cuda_kernels": kernels, "targets": targets}
        report["cmake_prefix"] = prefix
        emit_json({**report, "warnings": warnings, "notes": NOTES})
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
            ("NVIDIA GPU", nvidia),
            ("CUDA kernels", kernels),
            ("CMake prefix", prefix or "none: libmednext_edge is not installed"),
            ("packages", ", ".join(f"{name} {version}" for name, version in here.packages.items())),
        ],
    )
    show_table("Targets", ("target", "here", "detail"), [(t.target, t.verdict, t.detail) for t in targets])
    for warning in warnings:
        show_warning(warning)
    for note in NOTES:
        say(f"note: {note}", "dim")


def _nvidia() -> Nvidia:
    from mednext_edge.nvidia.devices import devices, driver_version, jetson

    try:
        return Nvidia(gpus=tuple(map(str, devices())), cuda=driver_version(), jetson=jetson())
    except TargetUnavailableError as error:
        return Nvidia(jetson=jetson(), problem=str(error))


def _warnings(isa: set[str]) -> list[str]:
    """What the instruction sets mean for the figures that this machine gives."""
    warnings = []
    if isa & {"avx512_bf16", "amx_bf16"}:
        warnings.append(
            "this processor computes in bf16, and OpenVINO then runs fp32 models in bf16 by default; "
            "the FP32 baselines of this tool pin f32. --precision int8-bf16 was the fastest on such ones"
        )
    if not isa & {"avx_vnni", "avx512_vnni", "amx_int8"}:
        warnings.append(
            "this processor has no INT8 dot-product instructions (VNNI, AMX): INT8 makes the model smaller, "
            "but gains less speed here than on a processor that has them"
        )
    return warnings
