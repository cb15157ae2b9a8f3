"""How the C library hands out the memory of a training on a CPU."""

from __future__ import annotations

import ctypes
import logging
import platform

_LOG = logging.getLogger(__name__)
# Of malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for the next ones; whether its C library can.

    glibc asks the system for every tensor beyond 32 MB anew, and the system clears each page again: a quarter of a
    training step's time and more. Memory once taken is given back when the process ends.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    if mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1):
        return True
    _LOG.warning("glibc refused to keep freed memory; training goes on, only slower")
    return False
