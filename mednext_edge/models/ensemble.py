"""Several networks of one kind as one: the folds of a cross-validation, averaged inside the graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mednext_edge.models.logits import per_class
from mednext_edge.task import ModelSpec

Average = Literal["softmax", "logits"]


class Ensemble(nn.Module):
    """[N, C, *spatial] -> logits as a member's, whose softmax is the average of the members'.

    Averaged are probabilities (nnU-Net v1) or logits (v2). The sliding window's average is linear, so that one window
    of the ensemble gives what averaging the members' whole images would.

    Args:
        members: networks that return one tensor of logits, of one configuration.
        member: what each of them is.
        average: what is averaged.
    """

    def __init__(self, members: Sequence[nn.Module], member: ModelSpec, average: Average) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.member, self.average = member, average

    def forward(self, x: Tensor) -> Tensor:
        logits: list[Tensor] = [net(x) for net in self.members]
        if self.average == "logits":
            return torch.stack(logits).mean(0)
        # log(mean(softmax)) with the largest member in front of the logarithm: nothing underflows, in float16 either.
        logs: list[Tensor] = [per_class(one).log_softmax(1) for one in logits]
        largest = logs[0]
        for one in logs[1:]:
            largest = torch.maximum(largest, one)
        total = (logs[0] - largest).exp()
        for one in logs[1:]:
            total = total + (one - largest).exp()
        mean = largest + total.log() - math.log(len(logs))
        return mean[:, 1:] - mean[:, :1] if logits[0].shape[1] == 1 else mean


def describe_ensemble(net: nn.Module) -> ModelSpec:
    """ModelSpec of an ensemble: its member's, several times."""
    assert isinstance(net, Ensemble)
    member, count = net.member, len(net.members)
    return ModelSpec(
        kind=member.kind,
        family="ensemble",
        variant=f"{count}x {member.family} {member.variant}",
        kernel_size=member.kernel_size,
        spatial_dims=member.spatial_dims,
        in_channels=member.in_channels,
        classes=member.classes,
        parameters=sum(p.numel() for p in net.parameters()),
        # The count of all is above; a reader bounds the numbers in here by the lengths of tensors.
        config={"members": count, "average": net.average, "member": {**member.model_dump(), "parameters": 0}},
    )
