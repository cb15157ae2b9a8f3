"""Networks in INT8 on the CPU kernels against their twin in float64, with every instruction set of this processor."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mednext_edge.errors import UsageError
from mednext_edge.ops import cpu_library
from mednext_edge.ops.int8_net import Net8
from mednext_edge.ops.int8_net_twin import net8_twin
from mednext_edge.ops.net_parts import Form
from mednext_edge.ops.packed_net import PackedNet
from tests.ops.int8_nets import Draw, draw_net

ISA = ("plain", "avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx")
# Kernel, axes, channels, size: whole blocks of 16 channels and parts, rows longer and shorter than is taken at once.
SIZES = (
    (3, 3, 16, (8, 8, 12)),
    (3, 3, 5, (2, 4, 6)),
    (3, 3, 48, (4, 70, 2)),
    (5, 3, 20, (8, 10, 14)),
    (7, 3, 16, (12, 8, 4)),
    (3, 2, 16, (16, 20)),
    (5, 2, 32, (70, 8)),
    (7, 2, 37, (4, 34)),
)


def one_level(kernel: int, dims: int, channels: int, *, residual: bool, resampled: bool) -> Net8:
    """A block, or two that halve the size and double it again. Deeper, a rounding that falls the other way spreads."""
    draw, c = Draw(kernel + channels), channels
    if resampled:
        blocks = (
            draw.block(Form.DOWN, kernel, dims, (c, 2 * c + 5, 2 * c), residual=residual),
            draw.block(Form.UP, kernel, dims, (2 * c, 4 * c + 5, c), residual=residual),
        )
    else:
        blocks = (draw.block(Form.SAME, kernel, dims, (c, 2 * c + 5, c), residual=residual),)
    return Net8(draw.dense(c, 2), blocks, draw.dense(19, c))


def check() -> None:
    """All sizes and forms."""
    g = torch.Generator().manual_seed(0)
    for kernel, dims, channels, size in SIZES:
        for residual in (True, False):
            for resampled in (True, False):
                net = one_level(kernel, dims, channels, residual=residual, resampled=resampled)
                check_one(net, torch.randn(2, *size, generator=g))


def check_one(net: Net8, x: torch.Tensor) -> None:
    found, exact = PackedNet(net)(x).double(), net8_twin(net, x)
    # Sums in float32 may round the other way at a tie: one level of one number of the hidden tensor.
    error = (found - exact).abs() / exact.std()
    assert error.square().mean().sqrt() < 0.01, (net, x.shape)
    assert (error > 1e-3).double().mean() < 0.3
    assert error.max() < 0.1


def check_extremes() -> None:
    """Numbers for which a kernel leaves its usual way."""
    one = one_level(3, 3, 32, residual=True, resampled=False)
    (block,), x = one.blocks, torch.randn(2, 6, 8, 10, generator=torch.Generator().manual_seed(0))
    for changed in (
        block,
        # A channel without weights.
        replace(block, depthwise=torch.cat([torch.zeros_like(block.depthwise[:1]), block.depthwise[1:]])),
        # Biases of more sums than a sum has digits.
        replace(block, expand=replace(block.expand, scale=block.expand.scale / 1e6)),
        replace(block, compress=replace(block.compress, bias=block.compress.bias + 300)),
    ):
        check_one(replace(one, blocks=(changed,)), x)
    check_one(one, x / 40)  # levels of -1 to 1: results of the convolution are a few units of 16 bits
    check_one(one_level(3, 2, 130, residual=True, resampled=True), x[:, 0])  # products of 525 numbers


@pytest.mark.parametrize("isa", ISA)
def test_against_float64(isa: str) -> None:
    """In a process of its own: the instruction set is chosen once."""
    code = "from tests.ops import test_int8_net as t; t.check(); t.check_extremes(); print(t.cpu_library.isa())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MEDNEXT_CPU_ISA": isa}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    used = done.stdout.strip()
    if used != isa:
        assert ISA.index(used) < ISA.index(isa)
        pytest.skip(f"this processor goes up to {used}")


def test_results_that_go_past_the_caches() -> None:
    """More than 32 MiB of a depthwise convolution's results, in rows of whole and of broken cache lines."""
    x = torch.randn(2, 1024, 1058, generator=torch.Generator().manual_seed(0))
    for resampled in (True, False):
        check_one(one_level(3, 2, 16, residual=True, resampled=resampled), x)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_whole_network(dims: int) -> None:
    net = draw_net(dims=dims, levels=3)
    x = torch.randn(2, *(16, 24, 8)[:dims], generator=torch.Generator().manual_seed(0))
    exact = net8_twin(net, x)
    assert (PackedNet(net)(x) - exact).norm() < 0.1 * exact.norm()


def test_results_do_not_depend_on_threads() -> None:
    packed, x = PackedNet(draw_net(width=20)), torch.randn(2, 12, 40, 8)
    one = packed(x, threads=1)
    assert all(torch.equal(packed(x, threads=threads), one) for threads in (2, 3, 7))


def test_sizes_take_turns() -> None:
    """Memory of one size is no trace in the next."""
    net = draw_net()
    packed, sizes = PackedNet(net), ((8, 8, 8), (4, 16, 8), (16, 8, 4), (8, 8, 8))
    images = [torch.randn(2, *size) for size in sizes]
    together = [packed(x) for x in images]
    assert all(torch.equal(found, PackedNet(net)(x)) for found, x in zip(together, images, strict=True))


FORKED = """
import os, torch
from tests.ops.test_int8_net import PackedNet, draw_net
packed, x = PackedNet(draw_net()), torch.randn(2, 8, 8, 8)
before = packed(x, threads=2)
child = os.fork()
if child == 0:
    same = torch.equal(packed(x, threads=2), before)
    packed.close()
    os._exit(0 if same else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("value", [1e30, -1e30, float("inf"), float("nan")])
def test_a_wild_voxel_harms_no_other_image(value: float) -> None:
    packed, x = PackedNet(draw_net()), torch.randn(2, 8, 8, 8)
    before, wild = packed(x), x.clone()
    wild[0, 3, 3, 3] = value
    packed(wild)
    assert torch.equal(packed(x), before)


def test_the_largest_sums_stay_in_16_bits() -> None:
    """All weights and all inputs at their ends; one voxel differs, so that there is a variance."""
    net = one_level(7, 3, 16, residual=True, resampled=False)
    net.blocks[0].depthwise.fill_(127)
    x = torch.full((2, 8, 8, 8), 1e6)
    x[:, 4, 4, 4] = -1e6
    exact = net8_twin(net, x)
    assert (PackedNet(net)(x) - exact).abs().max() < 0.05 * exact.std()


@pytest.mark.parametrize("shape", [(1, 8, 8, 8), (2, 8, 8), (2, 8, 8, 6), (2, 0, 8, 8)])
def test_images_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="multiples of 4"):
        PackedNet(draw_net())(torch.zeros(shape))


def test_numbers_that_do_not_fit() -> None:
    net = draw_net()
    first, down, *rest = net.blocks
    with pytest.raises(UsageError, match=r"found depthwise_scale .*; expected contiguous"):
        replace(first, depthwise_scale=first.depthwise_scale[:, :3])
    with pytest.raises(UsageError, match="kernel of 9"):
        replace(first, depthwise=torch.zeros(16, 9, 9, 9, dtype=torch.int8))
    with pytest.raises(UsageError, match="not finite"):
        replace(first, depthwise_scale=first.depthwise_scale * float("nan"))
    with pytest.raises(UsageError, match="shortcut"):
        replace(down, shortcut=None)
    with pytest.raises(UsageError, match="in_step"):
        replace(first, in_step=0.0)
    for blocks in ((first, *rest), (first, down, *rest[:-3]), (down, first, *rest)):
        with pytest.raises(UsageError, match=r"does not fit here|in front of a head"):
            Net8(net.stem, blocks, net.head)


def test_the_isa_is_named() -> None:
    assert cpu_library.isa() in ISA
