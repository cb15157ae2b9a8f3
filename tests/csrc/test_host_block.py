"""The CPU stand-in for a block of GPU threads: it must fail kernels that a GPU would get wrong."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from tests.csrc.host_library import build

KERNELS = """
#include <cmath>
#include "mednext/shim.h"
using namespace mednext;

// Every thread copies 16 bytes into shared memory and reads those of its neighbour.
template <bool WAIT, bool BARRIER>
struct Neighbour {
  struct Args { const float* from; float* to; };
  static constexpr int THREADS = 8, SHARED = THREADS * 16;
  static void run(const Args& a, char* shared) {
    const int t = thread_index();
    copy_async(shared + t * 16, a.from + t * 4, t != 3);
    copies_commit();
    if (WAIT) copies_wait<0>();
    if (BARRIER) barrier();
    a.to[block_x() * THREADS + t] = reinterpret_cast<float*>(shared)[(t + 1) % THREADS * 4];
  }
};

struct Parting {
  struct Args {};
  static constexpr int THREADS = 8, SHARED = 8;
  static void run(const Args&, char*) {
    if (thread_index() < 4) barrier();
  }
};

// Reads in the second phase what another thread writes in it: both orders of threads occur.
struct Race {
  struct Args { float* to; };
  static constexpr int THREADS = 2, SHARED = 16;
  static void run(const Args& a, char* shared) {
    float* memory = reinterpret_cast<float*>(shared);
    const int t = thread_index();
    for (int phase = 0; phase < 2; ++phase) {
      memory[t] = static_cast<float>(phase);
      if (t == 0) a.to[phase] = memory[1];
      barrier();
    }
  }
};

// A third of the lanes of the second warp, or half a warp, or nobody, misses an exchange; the first warp meets twice as
// often as the second, and both meet at a barrier.
template <int THREADS_, int MISSING>
struct Exchange {
  struct Args { float* to; };
  static constexpr int THREADS = THREADS_, SHARED = THREADS * 4;
  static void run(const Args& a, char* shared) {
    float* sums = reinterpret_cast<float*>(shared);
    const int t = thread_index(), warp = t / 32, lane = t % 32;
    float sum = 0;
    if (warp == 0 || lane >= MISSING) {
      for (int turn = 0; turn < 2 - warp; ++turn) {
        const float value[1] = {static_cast<float>(t + 100 * turn)};
        warp_exchange(value);
        sum += exchanged((lane + 1) % 32)[0];
      }
    }
    sums[t] = sum;
    barrier();
    if (t % 13 == 0 && t / 13 < 16) a.to[t / 13] = sums[(t + 32) % THREADS];
  }
};

struct Misaligned {
  struct Args { const float* from; float* to; };
  static constexpr int THREADS = 2, SHARED = 32;
  static void run(const Args& a, char*) {
    const Piece piece = read_piece(a.from + thread_index());
    write_piece(a.to, piece);
  }
};

#define API extern "C" __attribute__((visibility("default"))) int
API good(const float* x, float* y) { return launch<Neighbour<true, true>>({2, 1, 1}, {x, y}, nullptr); }
API no_wait(const float* x, float* y) { return launch<Neighbour<false, true>>({2, 1, 1}, {x, y}, nullptr); }
API no_barrier(const float* x, float* y) { return launch<Neighbour<true, false>>({2, 1, 1}, {x, y}, nullptr); }
API parting(const float*, float*) { return launch<Parting>({1, 1, 1}, {}, nullptr); }
API exchange(const float*, float* y) { return launch<Exchange<64, 0>>({1, 1, 1}, {y}, nullptr); }
API lanes_miss(const float*, float* y) { return launch<Exchange<64, 11>>({1, 1, 1}, {y}, nullptr); }
API half_a_warp(const float*, float* y) { return launch<Exchange<48, 0>>({1, 1, 1}, {y}, nullptr); }
API misaligned(const float* x, float* y) { return launch<Misaligned>({1, 1, 1}, {x, y}, nullptr); }
API race(const float*, float* y) { return launch<Race>({1, 1, 1}, {y}, nullptr); }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("block")
    source = folder / "kernels.cu"
    source.write_text(KERNELS)
    return ctypes.CDLL(str(build((source,), folder / "libblock.so")))


def run(library: ctypes.CDLL, name: str) -> tuple[int, list[float]]:
    # On a boundary of 16 bytes, as device memory is.
    x, y = torch.arange(1, 33, dtype=torch.float32), torch.zeros(16)
    code = library[name](*(ctypes.c_void_p(t.data_ptr()) for t in (x, y)))
    return code, y.tolist()


def test_right_kernel(library: ctypes.CDLL) -> None:
    assert run(library, "good") == (0, [5, 9, 0, 17, 21, 25, 29, 1] * 2)


@pytest.mark.parametrize("mistake", ("no_wait", "no_barrier"))
def test_memory_read_too_early_is_not_a_number(library: ctypes.CDLL, mistake: str) -> None:
    code, values = run(library, mistake)
    assert code == 0 and any(value != value for value in values)


def test_barrier_that_some_threads_miss(library: ctypes.CDLL) -> None:
    assert run(library, "parting")[0] == 719
    assert run(library, "good")[0] == 0


def test_lanes_exchange(library: ctypes.CDLL) -> None:
    """Twice in the first warp, once in the second: what is read is what the other lane gave to the same exchange."""
    sums = [2.0 * ((t + 1) % 32) + 100 if t < 32 else 32.0 + (t + 1) % 32 for t in range(64)]
    code, values = run(library, "exchange")
    assert code == 0 and values[:5] == [sums[(t + 32) % 64] for t in range(0, 64, 13)]


@pytest.mark.parametrize("mistake", ("lanes_miss", "half_a_warp"))
def test_exchange_that_some_lanes_miss(library: ctypes.CDLL, mistake: str) -> None:
    assert run(library, mistake)[0] == 719
    assert run(library, "good")[0] == 0


def test_address_off_its_boundary(library: ctypes.CDLL) -> None:
    assert run(library, "misaligned")[0] == 716


def test_threads_change_their_order(library: ctypes.CDLL) -> None:
    """In rising order thread 0 reads too early, in falling order it does not; one order alone would hide a race."""
    first, second = run(library, "race")[1][:2]
    assert first != first and second == 1


def test_launcher_and_build_agree(csrc: Path) -> None:
    """Every source of kernels is in the build."""
    listed = (csrc / "cuda.cmake").read_text()
    sources = sorted(path.relative_to(csrc).as_posix() for path in csrc.rglob("*.cu"))
    assert sources and [source for source in sources if f"${{csrc}}/{source}" not in listed] == []
