"""The INT8 feed-forward against PyTorch in float64, with every instruction set that this processor has."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mednext_edge.errors import UsageError
from mednext_edge.ops import cpu_library
from mednext_edge.ops.feed_forward_int8 import (
    WEIGHT_LEVELS,
    FeedForward8,
    PackedFeedForward,
    feed_forward_int8_twin,
    gelu_table,
)

# Whole panels of every instruction set, parts of one, and no multiple of anything; one voxel, a block, and a rest.
SIZES = ((32, 64, 32), (1, 1, 1), (5, 7, 3), (37, 70, 33), (64, 160, 96))
VOXELS = (1, 5, 48, 131)
ISA = ("plain", "avx2", "avx512", "avx512_vnni")


def draw(channels: int, hidden: int, out: int, voxels: int) -> tuple[Tensor, FeedForward8, Tensor]:
    """Scales are powers of two, so that every line of the table is exact and no rounding is left to chance."""
    g = torch.Generator().manual_seed(channels + hidden + out + voxels)

    def ints(levels: int, *shape: int) -> Tensor:
        return torch.randint(-levels, levels + 1, shape, generator=g, dtype=torch.int8)

    weights = FeedForward8(
        ints(WEIGHT_LEVELS, hidden, channels),
        torch.full((hidden,), 2.0**-10),
        ints(64, hidden).float() / 4,
        gelu_table(3 / 127, 3.0),
        ints(WEIGHT_LEVELS, out, hidden),
        torch.rand(out, generator=g) / 1000,
        torch.randn(out, generator=g),
    )
    return ints(127, voxels, channels), weights, torch.randn(voxels, out, generator=g).bfloat16()


def check() -> None:
    """All sizes; the worst sums that the ranges allow among them."""
    for size, voxels, with_residual in itertools.product(SIZES, VOXELS, (True, False)):
        x, weights, residual = draw(*size, voxels)
        if voxels == 5:
            x.fill_(127), weights.expand.fill_(WEIGHT_LEVELS), weights.compress.fill_(-WEIGHT_LEVELS)
        given = residual if with_residual else None
        found, exact = PackedFeedForward(weights)(x, given), feed_forward_int8_twin(x, weights, given)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("isa", ISA)
def test_against_float64(isa: str) -> None:
    """In a process of its own: the instruction set is chosen once."""
    code = "from tests.ops import test_feed_forward_int8 as t; t.check(); print(t.cpu_library.isa())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MEDNEXT_CPU_ISA": isa}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    used = done.stdout.strip()
    if used != isa:
        assert ISA.index(used) < ISA.index(isa)
        pytest.skip(f"this processor goes up to {used}")


def test_results_do_not_depend_on_threads() -> None:
    x, weights, residual = draw(37, 70, 33, 1000)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(PackedFeedForward(weights)(x, residual))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found, results[0]) for found in results)


def test_a_result_in_place_of_the_residual() -> None:
    x, weights, residual = draw(37, 70, 33, 131)
    block = PackedFeedForward(weights)
    expected = block(x, residual)
    assert block(x, residual, out=residual) is residual
    assert torch.equal(residual, expected)


def test_levels_beyond_the_table_take_its_ends() -> None:
    x, weights, _ = draw(5, 7, 3, 48)
    weights.expand_scale.fill_(1e6)
    found = PackedFeedForward(weights)(x, None)
    torch.testing.assert_close(found.double(), feed_forward_int8_twin(x, weights, None), rtol=2**-8, atol=1e-3)


def test_a_real_block_is_as_near_to_float_as_its_levels() -> None:
    """GELU by table: the error of the block is that of rounding its input, weights, hidden tensor and levels."""
    g = torch.Generator().manual_seed(0)
    x, w1, w2 = (torch.randn(s, generator=g) for s in ((4096, 32), (64, 32), (32, 64)))
    exact = F.linear(F.gelu(F.linear(x, w1)), w2)
    steps = [t.abs().amax() / levels for t, levels in ((x, 127), (w1, WEIGHT_LEVELS), (w2, WEIGHT_LEVELS))]
    x8, w18, w28 = ((t / step).round().to(torch.int8) for t, step in zip((x, w1, w2), steps, strict=True))
    top = float(F.linear(x, w1).abs().max())
    line = top / 127
    weights = FeedForward8(
        w18,
        (steps[0] * steps[1] / line).expand(64).contiguous(),
        torch.zeros(64),
        gelu_table(line, top),
        w28,
        (steps[2] * top / 127).expand(32).contiguous(),
        torch.zeros(32),
    )
    error = (PackedFeedForward(weights)(x8, None).float() - exact).norm() / exact.norm()
    assert 1e-3 < error < 0.05


def test_bad_tensors_are_refused() -> None:
    x, weights, residual = draw(5, 7, 3, 48)
    with pytest.raises(UsageError, match=r"found x torch.int8 \(48, 4\); expected torch.int8 \[voxels, 5\]"):
        PackedFeedForward(weights)(x[:, :4], None)
    with pytest.raises(UsageError, match=r"expected torch.bfloat16 \(48, 3\)"):
        PackedFeedForward(weights)(x, residual[:, :2])
    with pytest.raises(UsageError, match="found out with strides"):
        PackedFeedForward(weights)(x, None, out=torch.empty(3, 48, dtype=torch.bfloat16).T)
    with pytest.raises(UsageError, match="expected 63 at most"):
        FeedForward8(**{**vars(weights), "expand": torch.full((7, 5), 64, dtype=torch.int8)})
    with pytest.raises(UsageError, match=r"found table torch.int8 \(255,\)"):
        FeedForward8(**{**vars(weights), "table": weights.table[:255].contiguous()})
    assert cpu_library.isa() in ISA
