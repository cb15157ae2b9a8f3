"""The tensor-core product of a warp on its CPU stand-in, by the tables of the PTX ISA."""

from __future__ import annotations

import ctypes
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.csrc.host_library import build

KERNELS = """
#include "mednext/mma.h"
using namespace mednext;

// Every warp multiplies what its lanes are given: a [32][4] words, b [32][2] words, sums [32][4] floats, twice over.
template <class T>
struct Product {
  struct Args { const uint32_t* a; const uint32_t* b; float* sums; };
  static constexpr int THREADS = 64, SHARED = 8;
  static void run(const Args& args, char*) {
    const int t = thread_index();
    uint32_t a[4];
    float sums[4], start[4];
    for (int i = 0; i < 4; ++i) a[i] = args.a[4 * t + i], start[i] = args.sums[4 * t + i];
    mma<T>(sums, a, args.b[2 * t], args.b[2 * t + 1], start);
    mma<T>(sums, a, args.b[2 * t], args.b[2 * t + 1], sums);
    for (int i = 0; i < 4; ++i) args.sums[4 * t + i] = sums[i];
  }
};

// Every lane gives a row, of the four matrices of its warp, and takes its words.
struct Transposed {
  struct Args { const char* rows; uint32_t* words; };
  static constexpr int THREADS = 64, SHARED = 8;
  static void run(const Args& args, char*) {
    const int t = thread_index();
    uint32_t words[4];
    read_transposed(args.rows + 16 * t, words);
    for (int i = 0; i < 4; ++i) args.words[4 * t + i] = words[i];
  }
};

template <class T>
int run(const uint32_t* a, const uint32_t* b, float* sums) {
  return launch<Product<T>>({1, 1, 1}, {a, b, sums}, nullptr);
}

#define API extern "C" __attribute__((visibility("default"))) int
API f16(const uint32_t* a, const uint32_t* b, float* sums) { return run<F16>(a, b, sums); }
API transposed(const char* rows, uint32_t* words) { return launch<Transposed>({1, 1, 1}, {rows, words}, nullptr); }
API bf16(const uint32_t* a, const uint32_t* b, float* sums) { return run<BF16>(a, b, sums); }
"""

LANES = [(lane >> 2, lane % 4) for lane in range(32)]
# "Matrix Fragments for mma.m16n8k16 with floating point type": (row, column) of elements a0 .. a7, b0 .. b3, c0 .. c3
# of every lane, from its group and its place in the group.
A = [
    [(group if 0 <= i < 2 or 4 <= i < 6 else group + 8, (place * 2) + (i & 1) + (8 if i >= 4 else 0)) for i in range(8)]
    for group, place in LANES
]
B = [[((place * 2) + (i & 1) + (8 if i >= 2 else 0), group) for i in range(4)] for group, place in LANES]
C = [[(group if i < 2 else group + 8, (place * 2) + (i & 1)) for i in range(4)] for group, place in LANES]


def fragments(matrix: Tensor, table: list[list[tuple[int, int]]]) -> Tensor:
    """[32, elements of a lane]"""
    return torch.stack([torch.stack([matrix[at] for at in lane]) for lane in table])


def test_tables_hold_every_element_once() -> None:
    for table, shape in ((A, (16, 16)), (B, (16, 8)), (C, (16, 8))):
        held = sorted(at for lane in table for at in lane)
        assert held == [(row, column) for row in range(shape[0]) for column in range(shape[1])]


def test_sums_are_the_next_first_factor() -> None:
    """Two products side by side: c0, c1, c2, c3 of the left, then of the right, are a0 .. a7."""
    for a, c in zip(A, C, strict=True):
        assert a == c + [(row, column + 8) for row, column in c]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder: Path = tmp_path_factory.mktemp("mma")
    source = folder / "mma.cu"
    source.write_text(KERNELS)
    return ctypes.CDLL(str(build((source,), folder / "libmma.so")))


@pytest.mark.parametrize(("name", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_product(library: ctypes.CDLL, name: str, dtype: torch.dtype) -> None:
    """Two warps with matrices of their own; small integers, so that every sum is exact."""
    seed = torch.Generator().manual_seed(0)
    first, second, start = (
        torch.randint(-9, 10, (2, *shape), generator=seed).to(dtype) for shape in ((16, 16), (16, 8), (16, 8))
    )
    a = torch.cat([fragments(m, A) for m in first]).contiguous()
    b = torch.cat([fragments(m, B) for m in second]).contiguous()
    sums = torch.cat([fragments(m, C) for m in start]).float().contiguous()
    products = start.double() + 2 * (first.double() @ second.double())
    expected = torch.cat([fragments(m, C) for m in products])
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (a, b, sums))
    assert library[name](*pointers) == 0
    assert torch.equal(sums.double(), expected)


def test_reading_matrices_turned_over(library: ctypes.CDLL) -> None:
    """ "ldmatrix" with .trans and .x4: of every matrix a lane holds elements 2 t and 2 t + 1 of column g."""
    rows = torch.randint(-(2**15), 2**15, (2, 4, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.int16)
    words = torch.zeros(2, 32, 4, 2, dtype=torch.int16)
    assert library.transposed(ctypes.c_void_p(rows.data_ptr()), ctypes.c_void_p(words.data_ptr())) == 0
    for warp, (lane, (group, place)), matrix in itertools.product(range(2), enumerate(LANES), range(4)):
        assert torch.equal(words[warp, lane, matrix], rows[warp, matrix, 2 * place : 2 * place + 2, group])
