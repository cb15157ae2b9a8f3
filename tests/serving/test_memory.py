"""What keeps a service's memory where it is, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Twelve threads that hold memory at one time, and how many heaps glibc has by its own account.
HEAPS = """
import ctypes, re, sys, tempfile, threading
from mednext_edge.serving.memory import bound_heaps
libc = ctypes.CDLL(None)
for name, result, arguments in (("malloc", ctypes.c_void_p, [ctypes.c_size_t]), ("free", None, [ctypes.c_void_p]),
                                ("fopen", ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p]),
                                ("fclose", ctypes.c_int, [ctypes.c_void_p]),
                                ("malloc_info", ctypes.c_int, [ctypes.c_int, ctypes.c_void_p])):
    getattr(libc, name).restype, getattr(libc, name).argtypes = result, arguments
if sys.argv[1] == "shared":
    bound_heaps()
together = threading.Barrier(13)
def hold():
    held = libc.malloc(50_000)
    together.wait()
    together.wait()
    libc.free(held)
threads = [threading.Thread(target=hold) for _ in range(12)]
for thread in threads:
    thread.start()
together.wait()
with tempfile.NamedTemporaryFile() as file:
    stream = libc.fopen(file.name.encode(), b"w")
    assert libc.malloc_info(0, stream) == 0 and libc.fclose(stream) == 0
    print(len(re.findall("<heap nr=", open(file.name).read())))
together.wait()
"""

# Whether blocks of 2 MB are mapped by themselves, before and after one of 16 MB was freed.
LARGE = """
import ctypes, sys
from mednext_edge.serving.memory import bound_heaps
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
libc.mallinfo2.restype = Info
if sys.argv[1] == "bounded":
    bound_heaps()
def mapped():
    before = libc.mallinfo2().hblks
    block = libc.malloc(2_000_000)
    found = libc.mallinfo2().hblks - before
    libc.free(block)
    return found
first = mapped()
libc.free(libc.malloc(16_000_000))
print(first, mapped())
"""

# How many objects in cycles are there at most, when many are made after a large start.
CYCLES = """
import gc, sys
from mednext_edge.serving.memory import settle
start = [[] for _ in range(1_000_000)]
gc.collect()
if sys.argv[1] == "settled":
    settle()
class Peer:
    alive = 0
    def __init__(self):
        self.self = self
        Peer.alive += 1
    def __del__(self):
        Peer.alive -= 1
most = 0
window = []
for _ in range(400_000):  # most live longer than the collector's first rounds, as associations do
    window.append(Peer())
    if len(window) > 15_000:
        window.pop(0)
    most = max(most, Peer.alive)
print(most, gc.get_freeze_count() > 1_000_000)
"""


def said(program: str, word: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program, word], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="heaps of threads are glibc's")
def test_threads_bound_heaps() -> None:
    assert int(said(HEAPS, "own")[0]) > 8
    assert int(said(HEAPS, "shared")[0]) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="the limit that moves is glibc's")
def test_large_blocks_stay_out_of_the_heaps() -> None:
    assert said(LARGE, "as it is")[1] == "0"
    assert said(LARGE, "bounded") == ["1", "1"]


def test_the_collector_leaves_alone_what_was_there_at_the_start() -> None:
    """Garbage in cycles is collected sooner, since the old objects that its number is compared with are fewer."""
    before, frozen = said(CYCLES, "as it is")
    after, settled = said(CYCLES, "settled")
    assert (frozen, settled) == ("False", "True")
    assert int(after) < 0.6 * int(before)
