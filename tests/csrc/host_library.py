"""The CUDA kernels built for the processor: the same sources and the same C interface, blocks of threads as fibers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "mednext_edge" / "csrc"
HOST_LIBRARY = "libmednext_cuda_host.so"
SOURCES = (*sorted((CSRC / "kernels").glob("*.cu")), CSRC / "runtime" / "cuda_api.cu")


def compiler() -> str:
    """The C++ compiler, or a skip that says what is missing."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    pytest.skip("no C++ compiler (c++, g++, clang++)")


def build(sources: tuple[Path, ...], library: Path) -> Path:
    """Compile CUDA sources as C++ into a shared library."""
    command = [
        compiler(),
        "-std=c++17",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-fPIC",
        "-U_FORTIFY_SOURCE",
    ]
    command += ["-shared", "-fvisibility=hidden", f"-I{CSRC / 'include'}", "-x", "c++", *map(str, sources)]
    done = subprocess.run([*command, "-o", str(library)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library


def build_host_library(folder: Path) -> Path:
    """The kernels as `HOST_LIBRARY` in `folder`."""
    return build(SOURCES, folder / HOST_LIBRARY)
