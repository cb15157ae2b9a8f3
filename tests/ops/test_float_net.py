"""Networks in float on the CPU kernels against their twin in float64, with every instruction set of this processor."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mednext_edge.errors import UsageError
from mednext_edge.ops import cpu_library
from mednext_edge.ops.float_net import FloatNet, FloatPrecision
from mednext_edge.ops.float_net_twin import float_twin
from mednext_edge.ops.packed_net import PackedNet
from tests.ops.float_nets import draw_net
from tests.ops.test_int8_net import ISA

DTYPES: dict[FloatPrecision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Kernel, axes, channels, size: whole blocks of 16 channels and parts, rows longer and shorter than is taken at once,
# planes of more rows than one part has, long sums of products and long rows.
SIZES = (
    (3, 3, 16, (8, 8, 12)),
    (3, 3, 5, (4, 8, 4)),
    (3, 3, 48, (4, 72, 4)),
    (5, 3, 20, (8, 12, 16)),
    (7, 3, 16, (12, 8, 4)),
    (3, 2, 16, (16, 20)),
    (5, 2, 32, (72, 8)),
    (7, 2, 37, (4, 36)),
    (3, 3, 260, (4, 4, 8)),
    (3, 2, 8, (32, 300)),
)


def noise(net: FloatNet, *size: int, seed: int = 0) -> Tensor:
    return torch.randn(net.stem.weight.shape[1], *size, generator=torch.Generator().manual_seed(seed))


def distance(found: Tensor, exact: Tensor) -> float:
    """Relative."""
    return float((found.double() - exact).norm() / exact.norm())


def check() -> None:
    """No further from float64 than twice PyTorch's own computation of the same type."""
    for precision, dtype in DTYPES.items():
        for kernel, dims, width, size in SIZES:
            for residual in (True, False):
                net = draw_net(kernel, dims, width, residual=residual, precision=precision)
                x = noise(net, *size)
                exact = float_twin(net, x)
                ours, theirs = distance(PackedNet(net)(x), exact), distance(float_twin(net, x, dtype), exact)
                assert ours < 2 * theirs, (precision, kernel, dims, width, size, residual, ours, theirs)


@pytest.mark.parametrize("isa", ISA)
def test_against_float64(isa: str) -> None:
    """In a process of its own: the instruction set is chosen once."""
    code = "from tests.ops import test_float_net as t; t.check(); print(t.cpu_library.isa())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MEDNEXT_CPU_ISA": isa}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    used = done.stdout.strip()
    if used != isa:
        assert ISA.index(used) < ISA.index(isa)
        pytest.skip(f"this processor goes up to {used}")


@pytest.mark.parametrize("precision", DTYPES)
def test_a_channel_far_from_zero_is_normed_all_the_same(precision: FloatPrecision) -> None:
    """The variance of values near 1000 with a spread of 1 is not lost in the sum of their squares."""
    net = draw_net(levels=1, precision=precision)
    net.stem.bias[:] = 1000.0 if precision == "fp32" else 8.0
    x = noise(net, 8, 8, 8)
    exact = float_twin(net, x)
    assert distance(PackedNet(net)(x), exact) < 2 * distance(float_twin(net, x, DTYPES[precision]), exact)


@pytest.mark.parametrize("precision", DTYPES)
def test_results_do_not_depend_on_threads(precision: FloatPrecision) -> None:
    net = draw_net(width=20, precision=precision)
    packed, x = PackedNet(net), noise(net, 12, 40, 8)
    one = packed(x, threads=1)
    assert all(torch.equal(packed(x, threads=threads), one) for threads in (2, 3, 7))


@pytest.mark.parametrize("precision", DTYPES)
def test_sizes_take_turns(precision: FloatPrecision) -> None:
    """Memory of one size is no trace in the next."""
    net = draw_net(precision=precision)
    packed, sizes = PackedNet(net), ((8, 8, 8), (4, 16, 8), (16, 8, 4), (8, 8, 8))
    images = [noise(net, *size, seed=i) for i, size in enumerate(sizes)]
    together = [packed(x) for x in images]
    assert all(torch.equal(found, PackedNet(net)(x)) for found, x in zip(together, images, strict=True))


@pytest.mark.parametrize("value", [1e30, -1e30, float("inf"), float("nan")])
def test_a_wild_voxel_harms_no_other_image(value: float) -> None:
    net = draw_net()
    packed, x = PackedNet(net), noise(net, 8, 8, 8)
    before, wild = packed(x), x.clone()
    wild[0, 3, 3, 3] = value
    packed(wild)
    assert torch.equal(packed(x), before)


def test_what_is_not_finite_is_not_hidden() -> None:
    """As PyTorch, which gives no number where a norm has seen one that is not finite."""
    net = draw_net()
    x = noise(net, 8, 8, 8)
    x[0, 3, 3, 3] = float("nan")
    assert not PackedNet(net)(x).isfinite().any()


def test_numbers_that_do_not_fit() -> None:
    net = draw_net()
    first, down, *rest = net.blocks
    with pytest.raises(UsageError, match="expected fp32 or bf16"):
        replace(net, precision="fp16")
    with pytest.raises(UsageError, match=r"found depthwise torch.float64"):
        replace(first, depthwise=first.depthwise.double())
    with pytest.raises(UsageError, match="found eps -1"):
        replace(first, eps=-1.0)
    with pytest.raises(UsageError, match="shortcut"):
        replace(down, shortcut=None)
    with pytest.raises(UsageError, match="in front of a head"):
        replace(net, blocks=(first, down, *rest[:-3]))
    assert cpu_library.isa() in ISA
