"""GELU of the kernels, and division by a number known before the launch."""

from __future__ import annotations

import ctypes
import math
import subprocess
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.csrc.host_library import CSRC, build, compiler

LIBRARY = """
#include "mednext/divisor.h"
#include "mednext/gelu.h"
using namespace mednext;

#define API extern "C" __attribute__((visibility("default"))) void
API gelu_of(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = gelu(x[i]);
}
API quotients(const uint32_t* numbers, uint32_t* results, int64_t count, uint32_t by) {
  const Divisor d = divisor(by);
  for (int64_t i = 0; i < count; ++i) results[i] = d.quotient(numbers[i]);
}
"""
EXHAUSTIVE = """
#include <cstdio>
#include <cstring>
#include "mednext/gelu.h"

int main() {
  double worst = 0;
  for (uint32_t sign = 0; sign < 2; ++sign) {
    for (uint32_t bits = FIRST; bits <= LAST; ++bits) {
      const uint32_t word = bits | sign << 31;
      float x;
      memcpy(&x, &word, 4);
      const double exact = x * 0.5 * erfc(-x * 0.70710678118654752440);
      const double error = fabs(mednext::gelu(x) - exact);
      worst = error > worst ? error : worst;
    }
  }
  printf("%.3g\\n", worst);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder: Path = tmp_path_factory.mktemp("arithmetic")
    source = folder / "arithmetic.cu"
    source.write_text(LIBRARY)
    return ctypes.CDLL(str(build((source,), folder / "libarithmetic.so")))


def gelu(library: ctypes.CDLL, x: torch.Tensor) -> torch.Tensor:
    y = torch.empty_like(x)
    library.gelu_of(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), ctypes.c_int64(len(x)))
    return y


def bits(x: float) -> int:
    return int(torch.tensor(x).view(torch.int32))


def test_gelu_near_its_definition(library: ctypes.CDLL) -> None:
    """Every 997th float of [-30, 30], and those around the error's extremes."""
    magnitudes = torch.arange(0, bits(30.0) + 1, 997, dtype=torch.int32).view(torch.float32)
    dense = torch.linspace(0, 8, 400_001)
    x = torch.cat([magnitudes, -magnitudes, dense, -dense])
    wide = x.double()
    exact = wide * 0.5 * torch.special.erfc(-wide * math.sqrt(0.5))
    error = (gelu(library, x) - exact).abs()
    assert 1.0e-6 < error.max() <= 1.1e-6
    assert error[wide.abs() < 2.0**-12].max() <= 2e-11


def test_gelu_of_large_and_special_numbers(library: ctypes.CDLL) -> None:
    large = torch.tensor([5.2, 6.0, 30.0, 1e3, 1e10, 2e19, 3e38])
    assert torch.equal(gelu(library, large), large)
    assert torch.equal(gelu(library, -large), torch.zeros(7))
    special = torch.tensor([math.inf, -math.inf, math.nan, 0.0])
    # In float64: PyTorch's float32 GELU of infinity is NaN where it computes with AVX-512.
    torch.testing.assert_close(gelu(library, special), F.gelu(special.double()).float(), equal_nan=True)


@pytest.mark.slow
def test_gelu_of_every_float(tmp_path: Path) -> None:
    """All floats with magnitudes from 2^-12 to 30; below them the test above suffices."""
    source, program = tmp_path / "every.cpp", tmp_path / "every"
    limits = f"#include <cmath>\n#define FIRST {bits(2.0**-12)}u\n#define LAST {bits(30.0)}u\n"
    source.write_text(limits + EXHAUSTIVE)
    flags = ["-std=c++17", "-O3", "-march=native", f"-I{CSRC / 'include'}"]
    subprocess.run([compiler(), *flags, str(source), "-o", str(program)], check=True)
    worst = float(subprocess.run([program], check=True, capture_output=True, text=True).stdout)
    assert worst == 1.05e-6


@pytest.mark.parametrize("by", [1, 2, 3, 7, 10, 127, 128, 129, 641, 65535, 2**20 + 7, 2**30, 2**30 + 1, 2**31 - 1])
def test_quotients(library: ctypes.CDLL, by: int) -> None:
    seed = torch.Generator().manual_seed(by)
    around = torch.arange(1, 2**31 // by + 1 if by > 10**6 else 1000) * by
    numbers = torch.cat([around - 1, around, torch.randint(0, 2**31, (10_000,), generator=seed)])
    numbers = torch.cat([numbers[numbers < 2**31], torch.tensor([0, 1, 2**31 - 1])])
    given, results = numbers.to(torch.int32), torch.empty(len(numbers), dtype=torch.int32)
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (given, results))
    library.quotients(*pointers, ctypes.c_int64(len(numbers)), ctypes.c_uint32(by))
    assert torch.equal(results.long(), numbers // by)
