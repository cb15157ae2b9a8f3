"""The kernels compile for GPUs, and keep what they compute in registers."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mednext_edge.ops.cuda_library import CudaLibrary, DType, Layer

ROOT = Path(__file__).parents[2]

HOT = re.compile(r"\d(Direct|Banded|Transposed|WeightGradient|Ffn)I")
"""Of a mangled name: the kernels that a network spends its time in."""


def need(program: str, path: str | None = None) -> str:
    """Where a program is, or a skip that says that it is missing."""
    found = shutil.which(program) or shutil.which(program, path=path)
    if found is None:
        pytest.skip(f"no {program}")
    return found


def compile_kernels(folder: Path) -> tuple[Path, list[str], str]:
    """The library as the package builds it without a GPU, its architectures, and what ptxas reports of every kernel."""
    ours = str(Path(sys.executable).parent)
    cmake, ninja = need("cmake", ours), need("ninja", ours)
    nvcc = need("nvcc", f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin")
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    configure += [f"-DCMAKE_CUDA_COMPILER={nvcc}", "-DCMAKE_CUDA_FLAGS=-Xptxas=-v"]
    reports = []
    for command in (configure, [cmake, "--build", str(folder), "--target", "mednext_cuda", "--parallel", "2"]):
        environment = {name: value for name, value in os.environ.items() if name != "MEDNEXT_CUDA_ARCHS"}
        environment["MEDNEXT_CUDA"] = "ON"
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        reports.append(done.stdout + done.stderr)
    listed = re.search(r"CUDA kernels for ([\d;]+)", reports[0])
    assert listed
    return folder / "libmednext_cuda.so", listed.group(1).split(";"), reports[1]


def resources(report: str) -> dict[tuple[str, str], dict[str, int]]:
    """(mangled name, architecture) -> registers, bytes of stack frame, of spill stores and of spill loads."""
    pattern = re.compile(
        r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
        r"Used (?P<registers>\d+) registers",
        re.DOTALL,
    )
    return {
        (found["name"], found["arch"]): {key: int(found[key]) for key in ("stack", "stores", "loads", "registers")}
        for found in pattern.finditer(report)
    }


@pytest.mark.slow
def test_kernels_keep_to_registers(tmp_path: Path) -> None:
    path, architectures, report = compile_kernels(tmp_path)
    found = resources(report)
    assert {arch for _, arch in found} == {f"sm_{arch}" for arch in architectures}
    assert len(found) == report.count("Compiling entry function")
    hot = {key: value for key, value in found.items() if HOT.search(key[0])}
    # Three types; K of 3, 5, 7; convolution and weight gradient at two strides, and the transposed convolution. Two
    # types; K of 3, 5, 7 on tensor cores, and seven pairs of channels. K of 3, 5, 7 in int8. In 2-D also K of 9 at
    # stride 1, and not K of 3 on tensor cores.
    volumes, images = 3 * 3 * 5 + 2 * (3 + 7) + 3, 3 * (3 * 5 + 2) + 2 * 2 + 3
    assert len(hot) == (volumes + images) * len(architectures)
    assert {key: value for key, value in hot.items() if value["stack"] or value["stores"] or value["loads"]} == {}
    narrow = {key: value["registers"] for key, value in hot.items() if re.search(r"Direct.*Li3ELi1E", key[0])}
    narrow |= {key: value["registers"] for key, value in hot.items() if re.search(r"Ffn.*Li32ELi32E", key[0])}
    assert max(narrow.values()) <= 128, "two blocks of 256 threads do not fit a multiprocessor"

    library = CudaLibrary(path)  # needs neither a GPU nor a toolkit
    size = ctypes.c_size_t()
    query = ctypes.CDLL(str(library.path)).mednext_dwconv3d_workspace_bytes
    layer = Layer(1, 4, 4, 4, 32, 3, 3, 1, 0, DType.F16)
    assert query(ctypes.byref(layer), 0, ctypes.byref(size)) >= 0
    layer.kernel = 4
    assert query(ctypes.byref(layer), 0, ctypes.byref(size)) == -3
