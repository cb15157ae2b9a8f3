"""Whether results are right: against float64, with PyTorch's error in the same type as the measure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor


class Checked(Protocol):
    """Something that our kernels and PyTorch compute."""

    def draw(self, device: torch.device) -> tuple[Tensor, ...]:
        """Fresh random inputs."""

    def ours(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The results by our kernels."""

    def torchs(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The results by PyTorch, in the type of the inputs."""

    def terms(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Of every result, how large the terms are that are summed for it; the inputs are float64."""


@contextmanager
def poisoned() -> Iterator[None]:
    """New memory is NaN: PyTorch fills what it allocates when it is to be deterministic."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # Warnings alone, since matrix products would be refused without a setting of cuBLAS.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def check(case: Checked, device: torch.device) -> float:
    """Our worst error over the one that is allowed: right up to 1; NaN or infinity when a result is not finite."""
    inputs = case.draw(device)
    with poisoned():
        assert torch.empty(1, device=device).isnan().all()
        ours, again = case.ours(*inputs), case.ours(*inputs)
    if not all(torch.equal(a, b) for a, b in zip(ours, again, strict=True)):
        return math.inf
    exact = case.torchs(*(t.double() for t in inputs))
    terms = case.terms(*(t.double() for t in inputs))
    theirs = case.torchs(*inputs)
    worst = 0.0
    for o, t, e, a in zip(ours, theirs, exact, terms, strict=True):
        # Where torch happens to hit the value: one rounding of the result, and of a float32 sum of these terms.
        floor = torch.finfo(o.dtype).eps * e.abs().max() + torch.finfo(torch.float32).eps * a.abs().max()
        allowed = torch.maximum(2 * (t.double() - e).abs().max(), floor)
        ratio = float((o.double() - e).abs().max() / allowed)
        if math.isnan(ratio):
            return math.nan
        worst = max(worst, ratio)
    return worst


def checked(cases: Sequence[Checked], device: torch.device) -> tuple[dict[str, Any], list[str]]:
    """What all checks came to, and those that failed in words."""
    ratios = {str(case): check(case, device) for case in cases}
    wrong = [f"{name}: {ratio:.3g} times the error allowed" for name, ratio in ratios.items() if not ratio <= 1]
    return {"results": len(ratios), "worst_error_over_allowed": round(max(ratios.values()), 3)}, wrong
