"""The C library keeps what training frees."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from mednext_edge.training.allocator import keep_freed_memory
if {kept}:
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24).sum()  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
warm = [faults() for _ in range(12)]
print(sum(faults() for _ in range(4)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_pages_are_taken_once() -> None:
    found = {}
    for kept in (False, True):
        command = [sys.executable, "-c", PROGRAM.format(kept=kept)]
        found[kept] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found[True] < found[False] / 4
