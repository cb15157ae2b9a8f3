"""The conditions that a figure was measured under: system, processor, memory, versions.

No host name, no user name and no path: reports travel with bundles.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from mednext_edge.task import Frozen

PACKAGES = (
    "mednext-edge",
    "torch",
    "monai",
    "numpy",
    "openvino",
    "nncf",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
)


class Environment(Frozen):
    """Where and when.

    Attributes:
        date: UTC, ISO 8601.
        platform: system, release number and machine, such as `Linux 6.8.0 x86_64`.
        cpu: the processor's name as it gives it.
        physical_cores: None where the system does not tell.
        usable_cores: logical cores that this process may run on; all of them where the system does not tell.
        isa: instruction sets that matter here, such as `avx2`, `avx512`.
        memory_gb: installed memory in 1e9 bytes.
        packages: name to version of those that are installed.
    """

    date: str
    platform: str
    cpu: str
    physical_cores: int | None
    logical_cores: int
    usable_cores: int
    isa: tuple[str, ...]
    memory_gb: float
    python: str
    packages: dict[str, str]


def environment() -> Environment:
    """The environment of this process, now; imports none of the packages that it names."""
    from mednext_edge.cpu import features

    # Only the number: the rest of a release string may name whoever built the kernel.
    release = "".join(re.findall(r"^\d+(?:\.\d+)*", platform.release()))
    logical = psutil.cpu_count(logical=True) or 1
    return Environment(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        platform=f"{platform.system()} {release} {platform.machine()}",
        cpu=_cpu_name(),
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=logical,
        usable_cores=_usable_cores(logical),
        isa=features(),
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        python=platform.python_version(),
        packages=_versions(PACKAGES),
    )


def machine_digest(where: Environment) -> str:
    """SHA-256 in hex of what decides how fast a processor is: timings of another digest say nothing of this one."""
    parts = (where.platform, where.cpu, where.physical_cores, where.usable_cores, where.isa)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _usable_cores(logical: int) -> int:
    """Cores in the affinity mask: what a container with pinned cores may really use."""
    process = psutil.Process()
    return len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else logical


def _cpu_name() -> str:
    """The marketing name where the system has one; `platform.processor` is only the architecture on Linux."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "cpu model") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
