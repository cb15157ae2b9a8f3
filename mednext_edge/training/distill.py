"""Learning from a teacher: the answers of another network as soft labels, besides the labels themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mednext_edge.models.logits import per_class
from mednext_edge.training.loss import head_weights
from mednext_edge.training.objective import Batch, Network, Objective, Outcome, Outputs


@dataclass(frozen=True)
class Distillation:
    """share * divergence from the teacher + (1 - share) * another objective, over all outputs of the network.

    The divergence is Kullback-Leibler's of the class probabilities, a mean over voxels (Hinton et al., arXiv
    1503.02531, at temperature 1: the student is the same network, so that nothing has to be softened); of regions the
    mean of each one's.

    Attributes:
        plain: the objective without a teacher.
        teacher: with as many outputs as the student; its gradients are not computed.
        share: 0..1.
        regions: the outputs are regions in place of classes.
    """

    plain: Objective
    teacher: nn.Module
    share: float = 0.5
    regions: bool = False

    def __call__(self, net: Network, batch: Batch) -> Outcome:
        with torch.no_grad():
            taught = self._heads(self.teacher.to(batch.images.device)(batch.images))
        outputs = net(batch.images)
        outcome = self.plain(lambda images: outputs, batch)
        total = (1 - self.share) * outcome.loss
        heads = self._heads(outputs)
        for weight, mine, theirs in zip(head_weights(len(heads)), heads, taught, strict=True):
            total = total + self.share * weight * divergence(mine, theirs)
        return Outcome(total, outcome.logits)

    def _heads(self, outputs: Outputs) -> list[Tensor]:
        """Logits of classes, at least two: a region is one of two as well, inside or outside."""
        heads = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        if self.regions:
            heads = [head.flatten(0, 1).unsqueeze(1) for head in heads]
        return [per_class(head) for head in heads]


def divergence(logits: Tensor, taught: Tensor) -> Tensor:
    """Mean over samples and voxels of KL(softmax(taught) || softmax(logits)), both [N, classes, *spatial]."""
    mine, theirs = logits.float().log_softmax(1), taught.float().log_softmax(1)
    return (theirs.exp() * (theirs - mine)).sum(1).mean()
