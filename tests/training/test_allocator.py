"""The C library keeps what training frees, and no longer."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource, torch
from mednext_edge.training.allocator import freed_memory_kept
def faults(n):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        torch.ones(2**24).sum()  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
with freed_memory_kept():
    faults(12)
    kept = faults(4)
print(json.dumps([kept, faults(4)]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_pages_are_taken_once_inside_and_given_back_behind() -> None:
    command = [sys.executable, "-c", PROGRAM]
    inside, behind = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    pages = 4 * 2**26 // 4096
    assert inside < pages / 4
    assert behind > pages / 2
