"""How much work a network is, and how fast this machine could do it at best."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mednext_edge.models.loaded import LoadedModel

SIDE = 2048
ROUNDS = 5
PRECISIONS = ("fp32", "bf16", "int8")


def gflop(model: LoadedModel) -> float:
    """1e9 floating-point operations (two a multiply-add) of convolutions and products for one patch."""
    shape = (1, model.task.model.in_channels, *model.task.inference.patch)
    net = copy.deepcopy(model.net).to("meta")  # shapes without numbers: at once, whatever the patch
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(shape, device="meta"))
    return counter.get_total_flops() / 1e9


def gemm_peak(precision: str = "fp32", threads: int | None = None) -> float:
    """GFLOP/s (int8: GOP/s) of a matrix product of PyTorch in `fp32`, `bf16` or `int8`, the best of some."""
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        a, b, product = _factors(precision)
        best = float("inf")
        for _ in range(1 + ROUNDS):
            start = time.perf_counter()
            product(a, b)
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 2 * SIDE**3 / best / 1e9


def _factors(precision: str) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]:
    shape = (2, SIDE, SIDE)
    if precision == "int8":
        a, b = torch.randint(-127, 128, shape, dtype=torch.int8)
        return a, b, torch._int_mm
    a, b = torch.randn(shape).to(torch.bfloat16 if precision == "bf16" else torch.float32)
    return a, b, torch.mm
