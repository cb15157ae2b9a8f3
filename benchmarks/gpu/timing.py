"""Times on a GPU: CUDA graphs of many calls, contenders in turns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import torch

from mednext_edge.runtime.cuda_graph import capture

ROUNDS = 9
ROUND_MS = 2.0
COPIES = 16
"""Inputs that the calls of one graph go through, at most."""


def graph(call: Callable[[int], object], device: torch.device) -> Callable[[], float]:
    """Capture as many calls as fill a round; each run of the result gives milliseconds a call."""
    call(0)  # the first call chooses algorithms and loads code
    once = elapsed(lambda: call(0), device)
    count = min(max(math.ceil(ROUND_MS / once), 1), 4 * COPIES)

    def step() -> None:
        for i in range(count):
            call(i)

    replay, _ = capture(step, device)
    replay()
    return lambda: elapsed(replay, device) / count


def elapsed(call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds on the device."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end))


def in_turns(contenders: dict[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median of each over the rounds."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            taken[name].append(run())
    return {name: statistics.median(times) for name, times in taken.items()}


def copies_beyond(cache: int, moved: int) -> int:
    """Inputs that together are beyond the cache, where a call moves so many bytes."""
    return min(max(math.ceil(4 * cache / moved), 2), COPIES)


def copy_bandwidth(device: torch.device, cache: int) -> float:
    """GB/s of a copy that no cache holds, read and written bytes together."""
    source = torch.ones(max(2**28, 8 * cache), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    run = graph(lambda i: target.copy_(source), device)
    return 2 * source.numel() / in_turns({"copy": run})["copy"] / 1e6
