"""The kernel library is found, refused when it does not fit, and called as its header says."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mednext_edge import cpu
from mednext_edge.errors import MednextEdgeError, TargetUnavailableError
from mednext_edge.ops import cuda_library
from mednext_edge.ops.cuda_library import (
    FEED_FORWARD,
    NO_KERNEL_IMAGE,
    SIGNATURES,
    CudaLibrary,
    DType,
    FeedForward,
    Layer,
    Pass,
)

HEADER = (Path(__file__).parents[2] / "mednext_edge/csrc/include/mednext_cuda.h").read_text()
C_TYPES = {
    "int64_t": ctypes.c_int64,
    "int32_t": ctypes.c_int32,
    "size_t": ctypes.c_size_t,
    "int": ctypes.c_int,
    "float": ctypes.c_float,
}
STRUCTS: dict[str, type[ctypes.Structure]] = {"mednext_dwconv3d": Layer, "mednext_ffn": FeedForward}


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither an answer from before nor the surroundings of this process count."""
    monkeypatch.delenv(cuda_library.OVERRIDE, raising=False)
    for function in (cuda_library.library, cuda_library.available):
        function.cache_clear()
    yield
    for function in (cuda_library.library, cuda_library.available):
        function.cache_clear()


def test_constants_follow_the_header() -> None:
    constants = {name: int(value) for name, value in re.findall(r"MEDNEXT_(\w+) = (-?\d+)", HEADER)}
    assert {name: constants[name] for name in ("F32", "F16", "BF16", "I8")} == {t.name: t.value for t in DType}
    assert {p.name: p.value for p in Pass} == {name: constants[name] for name in ("FORWARD_STATS", "GRAD_WEIGHT")}
    assert constants["CUDA_ABI"] == cuda_library.ABI
    assert f"1 .. {cuda_library.LARGEST_KERNEL}" in HEADER


@pytest.mark.parametrize("name", STRUCTS)
def test_structs_follow_the_header(name: str) -> None:
    body = re.search(rf"typedef struct \{{([^}}]*)\}} {name};", HEADER)
    assert body
    fields = re.sub(r"/\*.*?\*/", "", body.group(1), flags=re.DOTALL)
    declared = [
        (name, C_TYPES[kind])
        for kind, names in re.findall(r"(int\d+_t|float) ([^;]+);", fields)
        for name in names.split(", ")
    ]
    assert list(STRUCTS[name]._fields_) == declared


def arguments(declared: str) -> list[Any]:
    """As ctypes names them."""
    kinds: list[Any] = []
    for argument in declared.split(","):
        kind = re.sub(r"\s*\w+$", "", argument.strip().removeprefix("const "))
        if kind.removesuffix("*") in STRUCTS:
            kinds.append(ctypes.POINTER(STRUCTS[kind.removesuffix("*")]))
        elif kind == "size_t*":
            kinds.append(ctypes.POINTER(ctypes.c_size_t))
        else:
            kinds.append(ctypes.c_void_p if kind.endswith("*") else C_TYPES[kind])
    return kinds


def test_signatures_follow_the_header() -> None:
    declared = dict(re.findall(r"int mednext_dwconv3d_(\w+)\((.*?)\);", HEADER, re.DOTALL))
    assert {name: arguments(text) for name, text in declared.items()} == {k: list(v) for k, v in SIGNATURES.items()}
    others = dict(re.findall(r"int (mednext_ffn_\w+)\((.*?)\);", HEADER, re.DOTALL))
    assert {name: arguments(text) for name, text in others.items()} == {"mednext_ffn_forward": list(FEED_FORWARD)}


def test_the_named_library_comes_first(host_library: CudaLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda_library.OVERRIDE, str(host_library.path))
    assert cuda_library.available()
    assert cuda_library.find() == host_library.path
    assert cuda_library.library().path == host_library.path
    assert cuda_library.library() is cuda_library.library()


def test_the_installed_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda_library, "places", lambda name: [tmp_path / "absent", tmp_path / name])
    (tmp_path / cuda_library.LIBRARY).touch()
    assert cuda_library.find() == tmp_path / cuda_library.LIBRARY
    assert cpu.places(cuda_library.LIBRARY)[0].parent == Path(cpu.__file__).parent / "lib"


def test_a_named_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(cuda_library.OVERRIDE, str(tmp_path / "absent.so"))
    with pytest.raises(MednextEdgeError, match=r"MEDNEXT_CUDA_LIBRARY names .*absent.so, which is not a file"):
        cuda_library.available()


def test_a_package_without_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda_library, "places", lambda name: [tmp_path / name])
    assert not cuda_library.available()
    with pytest.raises(TargetUnavailableError, match=r"built without CUDA kernels.*MEDNEXT_CUDA=ON"):
        cuda_library.library()


def test_a_file_that_is_no_library(tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    with pytest.raises(MednextEdgeError, match=r"broken.so cannot be used \(.*reinstall"):
        CudaLibrary(broken)


def test_another_library() -> None:
    with pytest.raises(MednextEdgeError, match=r"cannot be used \(.*mednext_cuda_abi.*reinstall"):
        CudaLibrary(cpu.library_path())


def test_another_version(host_library: CudaLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    abi = cuda_library.ABI
    monkeypatch.setattr(cuda_library, "ABI", abi + 1)
    with pytest.raises(MednextEdgeError, match=rf"has interface {abi}, expected {abi + 1}; reinstall"):
        CudaLibrary(host_library.path)


def test_every_refusal_of_the_library_has_words(host_library: CudaLibrary) -> None:
    codes = [int(code) for code in re.findall(r"MEDNEXT_E_\w+ = (-\d+)", HEADER)]
    assert codes == list(range(-1, -1 - len(codes), -1))
    words = {host_library._library.mednext_cuda_error(code) for code in (0, *codes, -100)}
    assert len(words) == len(codes) + 2


def test_a_library_for_other_gpus_says_how_to_rebuild(
    host_library: CudaLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(host_library._functions, "forward", lambda *_: NO_KERNEL_IMAGE)
    with pytest.raises(MednextEdgeError, match=r"code 209.*\[1, 2, 3, 4, 5\], 3-D, kernel 7, .* BF16.*CUDA_ARCHS"):
        host_library.call("forward", Layer(1, 3, 4, 5, 2, 3, 7, 1, 0, DType.BF16))


def test_a_refusal_of_the_second_kernel_says_of_what(host_library: CudaLibrary) -> None:
    layer = FeedForward(1, 3, 4, 5, 32, 40, 64, DType.BF16, 1e-5, 1, 1, 1, 1)
    words = r"`ffn_forward` did not run \(code -\d.*\[1, 32, 3, 4, 5\], 40 hidden and 64 output channels, BF16"
    with pytest.raises(MednextEdgeError, match=words):
        host_library.feed_forward(layer, *(None,) * 12)


def test_workspaces_grow_with_the_layer(host_library: CudaLibrary) -> None:
    small, large = (Layer(1, n, n, n, 8, 3, 3, 1, 0, DType.F16) for n in (4, 64))
    for which in Pass:
        assert 0 < host_library.workspace_bytes(small, which) < host_library.workspace_bytes(large, which)
    with pytest.raises(MednextEdgeError, match="stride"):
        host_library.workspace_bytes(Layer(1, 4, 4, 4, 8, 3, 3, 3, 0, DType.F16), Pass.GRAD_WEIGHT)


def test_importing_the_operators_loads_no_library() -> None:
    script = "import mednext_edge.ops.depthwise3d; from mednext_edge.ops import cuda_library as c; "
    script += "print(c.library.cache_info().currsize, c.available.cache_info().currsize)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "0"]
