"""How the C library hands out the memory of a training on a CPU."""

from __future__ import annotations

import ctypes
import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_LOG = logging.getLogger(__name__)
# Of malloc.h, with glibc's own settings.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
USUAL = ((M_MMAP_MAX, 65536), (M_TRIM_THRESHOLD, 128 * 1024))


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let this process keep the memory of freed tensors for the next ones, until the end of the block.

    glibc asks the system for every tensor beyond 32 MB anew, and the system clears each page again: a quarter of a
    training step's time and more. Other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, -1)):
        _LOG.warning("glibc refused to keep freed memory; training goes on, only slower")
    try:
        yield
    finally:
        for name, value in USUAL:
            libc.mallopt(name, value)
        libc.malloc_trim(0)
