"""What a service asks of Python and of the C library at its start, so that its memory stays what it is."""

from __future__ import annotations

import ctypes
import gc

# Of <malloc.h>.
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_LARGE_BYTES = 2**20
_ARENAS = 2


def bound_heaps() -> None:
    """Let threads share two of glibc's heaps, and keep what is large out of them; of no effect with other C libraries.

    glibc gives threads that are there at one time a heap each, up to eight a processor, and keeps in each what was
    freed there. A node has two threads an association, and a heap grows to what its worst moment took. Blocks of 1 MB
    and more go back to the system at once: by default the limit follows the largest block that was freed, up to 32 MB,
    and Python's table of interned strings, 4 MB and sooner or later 8, leaves a hole of its size when it is made anew
    (every name of a file that pathlib makes goes through it). Call before threads are started: heaps that are there
    stay.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, _ARENAS)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def settle() -> None:
    """Take what is there now, the modules and the engine, out of the garbage collector's rounds; call once it is there.

    Python looks at old objects once their number has grown by a quarter. With the half million that modules make,
    associations and data sets that refer to themselves would wait until there are more than a hundred thousand.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # counts the old objects again: there are none
