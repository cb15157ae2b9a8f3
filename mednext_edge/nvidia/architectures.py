"""GPU architectures by compute capability: how people write them, and which a provider can build for from elsewhere.

Capabilities are NVIDIA's, <https://developer.nvidia.com/cuda-gpus>; written `8.6`, as CUDA and torch report them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import ModuleType

from mednext_edge.errors import UsageError
from mednext_edge.nvidia.providers import Provider

PORTABLE = ("8.6", "8.9", "12.0")
"""Ampere, Ada and Blackwell: the RTX cards that one bundle is meant to run on, unless others are asked for."""

ON_DEVICE = {
    "8.7": "Jetson Orin",
    "9.0": "Hopper",
    "10.0": "data-centre Blackwell",
    "10.1": "Jetson Thor",  # its name until CUDA 13
    "10.3": "data-centre Blackwell",
    "11.0": "Jetson Thor",
}
"""Architectures that TensorRT itself builds for, on the device, and TensorRT for RTX does not know."""

_WRITTEN = re.compile(r"(?:sm_?|compute_?)?(\d{1,2})\.?(\d)[af]?", re.IGNORECASE)
_MEMBER = re.compile(r"SM(\d+)(\d)")


def normalize(arch: str) -> str:
    """`sm_86`, `sm86`, `compute_86`, `86` and `8.6` as `8.6`; the suffix of `sm_90a` is dropped.

    Raises:
        UsageError: it is none of these.
    """
    match = _WRITTEN.fullmatch(arch.strip())
    if match is None:
        raise UsageError(f"`{arch}` is no GPU architecture; expected a compute capability such as 8.6 or sm_86")
    return f"{match[1]}.{match[2]}"


def member(arch: str) -> str:
    """The name of `8.6` in NVIDIA's enumeration: `SM86`."""
    return "SM" + arch.replace(".", "")


def supported(module: ModuleType) -> tuple[str, ...]:
    """Compute capabilities that a module builds for without the device, in ascending order; may be empty."""
    enumeration = getattr(module, "ComputeCapability", None)
    names = () if enumeration is None else enumeration.__members__
    found = [match for match in map(_MEMBER.fullmatch, names) if match]  # not NONE and CURRENT
    return tuple(f"{match[1]}.{match[2]}" for match in sorted(found, key=lambda m: (int(m[1]), int(m[2]))))


def check_archs(archs: Sequence[str], module: ModuleType, provider: Provider) -> tuple[str, ...]:
    """The architectures to build for, normalised, each once, in the order given.

    Raises:
        UsageError: one is misspelt, the provider cannot build for one, or it builds for its own device alone.
    """
    if archs and not provider.cross:
        raise UsageError(
            f"{provider.title} builds for the GPU it runs on; leave the architecture out, "
            "or use `--target trt-rtx`, which builds for others"
        )
    known = supported(module)
    chosen = tuple(dict.fromkeys(normalize(arch) for arch in archs))
    for arch in chosen:
        if arch in known:
            continue
        advice = ""
        if arch in ON_DEVICE:
            advice = f"; for {ON_DEVICE[arch]} use `--target trt` and finish the bundle on the device"
        raise UsageError(
            f"{provider.title} {module.__version__} cannot build for compute capability {arch}; "
            f"it supports {', '.join(known)}{advice}"
        )
    return chosen
