"""The native CPU query against what the kernel says, and its errors."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from mednext_edge import cpu
from mednext_edge.errors import MednextEdgeError

# Flags of /proc/cpuinfo that must all be there for a feature.
FLAGS = {
    "avx2": ("avx2",),
    "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512dq"),
    "avx_vnni": ("avx_vnni",),
    "avx512_vnni": ("avx512_vnni",),
    "avx512_bf16": ("avx512_bf16",),
    "amx_int8": ("amx_int8",),
    "amx_bf16": ("amx_bf16",),
    "avx512_fp16": ("avx512_fp16",),
    "avx512_vbmi": ("avx512vbmi",),
}


@pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() != "x86_64", reason="/proc/cpuinfo flags are Linux on x86-64"
)
def test_features_are_those_of_the_kernel() -> None:
    line = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert line
    present = set(line.group(1).split())
    assert cpu.features() == tuple(name for name in cpu.FEATURES if present.issuperset(FLAGS[name]))


def test_names_follow_the_header() -> None:
    header = (Path(__file__).parents[1] / "mednext_edge/csrc/include/mednext_cpu.h").read_text()
    bits = re.findall(r"MEDNEXT_CPU_(\w+) = 1u << (\d+)", header)
    assert [(name.lower(), int(bit)) for name, bit in bits] == [(n, i) for i, n in enumerate(cpu.FEATURES)]


def test_library_is_found() -> None:
    assert cpu.library_path().name == cpu.LIBRARY


def test_missing_library_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "LIBRARY", "libabsent.so")
    with pytest.raises(MednextEdgeError, match=r"libabsent.so is not installed.*reinstall"):
        cpu.library_path()


def test_broken_library_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(cpu, "library_path", lambda: broken)
    cpu.load.cache_clear()
    try:
        with pytest.raises(MednextEdgeError, match=r"cannot be used.*reinstall"):
            cpu.features()
    finally:
        cpu.load.cache_clear()
