"""The kernels compile for GPUs, and keep what they compute in registers."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mednext_edge.ops.cuda_library import CudaLibrary, DType, Layer
from tests.csrc.host_library import CSRC

HOT = re.compile(r"\d(Direct|Banded|Transposed|WeightGradient|Ffn)I")
"""Of a mangled name: the kernels that a network spends its time in."""


def nvcc() -> str:
    """The CUDA compiler, or a skip that says what is missing."""
    folder = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which("nvcc") or shutil.which("nvcc", path=f"{folder}/bin")
    if found is None:
        pytest.skip("no nvcc")
    return found


def default_architectures() -> list[str]:
    listed = re.search(r"set\(DEFAULT_ARCHS ([\d ]+)\)", (CSRC / "cuda.cmake").read_text())
    assert listed
    return listed.group(1).split()


def sources() -> list[Path]:
    """In the order of the build, which starts with what takes longest."""
    return [CSRC / path for path in re.findall(r"\$\{csrc\}/(\S+\.cu)", (CSRC / "cuda.cmake").read_text())]


def compile_kernels(folder: Path, architectures: list[str]) -> tuple[Path, str]:
    """The library, and what ptxas reports of every kernel."""
    compiler = nvcc()
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]
    codes.append(f"-gencode=arch=compute_{architectures[0]},code=compute_{architectures[0]}")
    common = [compiler, "-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", f"-I{CSRC / 'include'}", *codes]

    def one(source: Path) -> tuple[Path, str]:
        target = folder / f"{source.stem}.o"
        command = [*common, "-Xptxas=-v", "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return target, done.stdout + done.stderr

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(one, sources()))
    library = folder / "libmednext_cuda.so"
    command = [compiler, "-shared", "-cudart=static", *codes, *(str(path) for path, _ in objects), "-o", str(library)]
    subprocess.run(command, check=True, capture_output=True)
    return library, "".join(report for _, report in objects)


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
    architectures = default_architectures()
    path, report = compile_kernels(tmp_path, architectures)
    found = resources(report)
    assert len(found) == report.count("Compiling entry function")
    hot = {key: value for key, value in found.items() if HOT.search(key[0])}
    # Three types; K of 3, 5, 7; convolution and weight gradient at two strides, and the transposed convolution. Two
    # types; K of 3, 5, 7 on tensor cores, and seven pairs of channels. K of 3, 5, 7 in int8.
    assert len(hot) == (3 * 3 * 5 + 2 * (3 + 7) + 3) * len(architectures)
    assert {key: value for key, value in hot.items() if value["stack"] or value["stores"] or value["loads"]} == {}
    narrow = {key: value["registers"] for key, value in hot.items() if re.search(r"Direct.*Li3ELi1E", key[0])}
    narrow |= {key: value["registers"] for key, value in hot.items() if re.search(r"Ffn.*Li32ELi32E", key[0])}
    assert max(narrow.values()) <= 128, "two blocks of 256 threads do not fit a multiprocessor"

    library = CudaLibrary(path)  # needs neither a GPU nor a toolkit
    size = ctypes.c_size_t()
    query = ctypes.CDLL(str(library.path)).mednext_dwconv3d_workspace_bytes
    layer = Layer(1, 4, 4, 4, 32, 3, 1, 0, DType.F16)
    assert query(ctypes.byref(layer), 0, ctypes.byref(size)) >= 0
    layer.kernel = 4
    assert query(ctypes.byref(layer), 0, ctypes.byref(size)) == -3
