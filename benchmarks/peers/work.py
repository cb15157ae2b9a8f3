"""How much work a network is, and how fast this machine could do it at best."""

from __future__ import annotations

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from mednext_edge.models.loaded import LoadedModel

SIDE = 1024
ROUNDS = 5


def gflop(model: LoadedModel) -> float:
    """1e9 floating-point operations (two a multiply-add) of convolutions and products for one patch."""
    shape = (1, model.task.model.in_channels, *model.task.inference.patch)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.net(torch.zeros(shape))
    return counter.get_total_flops() / 1e9


def gemm_peak(threads: int | None = None) -> float:
    """GFLOP/s of a float32 matrix product of PyTorch, the best of some."""
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
        best = float("inf")
        for _ in range(1 + ROUNDS):
            start = time.perf_counter()
            torch.mm(a, b)
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 2 * SIDE**3 / best / 1e9
