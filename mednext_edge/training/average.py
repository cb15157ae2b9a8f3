"""Exponential moving average of the weights (Polyak averaging), validated and returned in their place."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class AveragedWeights:
    """A copy of a network that follows it: after each step average = decay * average + (1 - decay) * weights.

    Args:
        net: followed; the copy starts as it is.
        decay: 0..1; early on the smaller (1 + step) / (10 + step) is used, so that the random start is forgotten.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Follow `net` after optimiser step number `step`, from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, now in zip(self.net.state_dict().values(), net.state_dict().values(), strict=True):
            if average.is_floating_point():
                average.lerp_(now, 1 - decay)
            else:
                average.copy_(now)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.net.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.net.load_state_dict(state)
