"""What a training step minimises, as an object that can be replaced: supervision here, distillation elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F

from mednext_edge.models.logits import per_class
from mednext_edge.training.loss import SupervisedLoss

Outputs = Tensor | Sequence[Tensor]
"""Logits [N, classes, *patch]; of a deeply supervised network a sequence at strides 1, 2, 4, ..."""
Network = Callable[[Tensor], Outputs]


@dataclass(frozen=True)
class Batch:
    """What one process sees at once.

    Attributes:
        images: [N, C, *patch] float32, on the device.
        labels: their values [N, 1, *patch] float32, on the device.
        step: number of the optimiser step, from 0; whatever an objective changes over time depends on it alone,
            so that a resumed run goes on as it would have.
    """

    images: Tensor
    labels: Tensor
    step: int


@dataclass(frozen=True)
class Outcome:
    """Of one batch: the loss to minimise (a scalar that averages over the samples), and the logits at full size."""

    loss: Tensor
    logits: Tensor


class Objective(Protocol):
    """Runs the network on a batch and says how far off it is.

    `net` computes in the run's precision by itself; what the objective does with the outputs is in float32.
    """

    def __call__(self, net: Network, batch: Batch) -> Outcome: ...


@dataclass(frozen=True)
class Supervised:
    """The recipe's own objective: Dice and cross-entropy against the labels."""

    loss: SupervisedLoss

    def __call__(self, net: Network, batch: Batch) -> Outcome:
        outputs = net(batch.images)
        heads = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        if not self.loss.regions:
            heads = [per_class(head) for head in heads]
        return Outcome(self.loss(heads, batch.labels), heads[0])


@dataclass(frozen=True)
class Classified:
    """Cross-entropy of whole images against their classes, [N, 1]."""

    def __call__(self, net: Network, batch: Batch) -> Outcome:
        outputs = net(batch.images)
        assert isinstance(outputs, Tensor), "a classifier has one output"
        logits = per_class(outputs).float()
        return Outcome(F.cross_entropy(logits, batch.labels[:, 0].long()), logits)
