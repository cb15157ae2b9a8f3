"""Which instruction set is taken, where the best one is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mednext_edge import cpu
from tests.csrc.host_library import compiler

# Linux is asked for the tiles (ARCH_REQ_XCOMP_PERM) and says no; every other call goes through.
NO_TILES = r"""
#include <errno.h>
#include <sys/syscall.h>
long syscall(long number, long a, long b, long c, long d, long e, long f) {
  if (number == SYS_arch_prctl && a == 0x1023) {
    errno = EPERM;
    return -1;
  }
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  if (result < 0 && result > -4096) {
    errno = (int)-result;
    return -1;
  }
  return result;
}
"""


@pytest.mark.parametrize(("asked", "expected"), [("", "avx512_vnni"), ("amx", "avx512_vnni"), ("avx512_bf16",) * 2])
def test_without_tiles_intel_multiplies_bfloat16_in_float32(tmp_path: Path, asked: str, expected: str) -> None:
    """AVX512-BF16 is slow on Intel's processors, and taken there only when it is asked for."""
    if "amx_bf16" not in cpu.features():
        pytest.skip("this processor has no tiles")
    if "GenuineIntel" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("not a processor of Intel's")
    source, shim = tmp_path / "no_tiles.c", tmp_path / "no_tiles.so"
    source.write_text(NO_TILES)
    subprocess.run([compiler(), "-x", "c", "-shared", "-fPIC", str(source), "-o", str(shim)], check=True)
    done = subprocess.run(
        [sys.executable, "-c", "from mednext_edge.ops.cpu_library import isa; print(isa())"],
        env={**os.environ, "MEDNEXT_CPU_ISA": asked, "LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == expected
