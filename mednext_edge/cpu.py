"""What this processor can do for INT8 and BF16 convolutions, asked of the native library in csrc/."""

from __future__ import annotations

import ctypes
import functools
import sys
from importlib import metadata
from pathlib import Path

from mednext_edge.errors import MednextEdgeError

LIBRARY = {"win32": "mednext_cpu.dll", "darwin": "libmednext_cpu.dylib"}.get(sys.platform, "libmednext_cpu.so")

# The order of the bits in csrc/include/mednext_cpu.h.
FEATURES = (
    "avx2",
    "avx512",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "avx512_fp16",
    "avx512_vbmi",
)


def places(library: str) -> list[Path]:
    """Where a native library of ours may be: beside this file in a wheel, in site-packages for an editable install."""
    try:
        installed = metadata.files("mednext-edge") or []
    except metadata.PackageNotFoundError:
        installed = []
    listed = [Path(str(file.locate())) for file in installed if file.name == library]
    return [Path(__file__).parent / "lib" / library, *listed]


def library_path() -> Path:
    """Where the native library was installed.

    Raises:
        MednextEdgeError: it is not installed.
    """
    candidates = places(LIBRARY)
    for path in candidates:
        if path.is_file():
            return path
    raise MednextEdgeError(
        f"the native library {LIBRARY} is not installed (looked at {', '.join(map(str, candidates))}); "
        "reinstall the package, in a clone with `pip install --force-reinstall --no-deps -e .`"
    )


def edge_library() -> Path | None:
    """Where libmednext_edge, the runtime for C and C++, was installed; None where it was not built (Windows)."""
    return next((path for path in places(LIBRARY.replace("mednext_cpu", "mednext_edge")) if path.is_file()), None)


@functools.cache
def load() -> ctypes.CDLL:
    """The native library, with `mednext_cpu_features` declared.

    Raises:
        MednextEdgeError: it is missing or broken.
    """
    path = library_path()
    try:
        library = ctypes.CDLL(str(path))
        library.mednext_cpu_features.restype = ctypes.c_uint32
        library.mednext_cpu_features.argtypes = []
    except (OSError, AttributeError) as error:
        raise MednextEdgeError(f"{path} cannot be used ({error}); reinstall mednext-edge on this machine") from error
    return library


def features() -> tuple[str, ...]:
    """Names out of `FEATURES` that both the processor and the operating system support; empty when not x86-64.

    Raises:
        MednextEdgeError: the native library is missing or broken.
    """
    mask = int(load().mednext_cpu_features())
    return tuple(name for bit, name in enumerate(FEATURES) if mask >> bit & 1)
