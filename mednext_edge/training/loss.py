"""Dice plus cross-entropy over every output of a deeply supervised network, of classes or of regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from monai.networks import one_hot
from torch import Tensor, nn
from torch.nn import functional as F

SMOOTH = 1e-5
Regions = Sequence[Sequence[int]]
"""The values of each region, in the order of the outputs; none for classes."""


def head_weights(count: int) -> list[float]:
    """Of the outputs at strides 1, 2, 4, ...: they halve and sum to one."""
    return [2.0 ** (count - 1 - i) / (2**count - 1) for i in range(count)]


class SupervisedLoss(nn.Module):
    """sum_i w_i (soft Dice + cross-entropy) of logits at strides 1, 2, 4, ...; w_i halves and sums to one.

    nnU-Net's terms: softmax, background left out of the Dice (not of the cross-entropy), smoothing 1e-5
    in numerator and denominator. Targets are downsampled with nearest neighbours. Regions have a sigmoid and a binary
    cross-entropy each, and all of them are in the Dice.

    Args:
        regions: what the outputs are, in place of classes.
        batch_dice: pool the batch before the Dice ratio.
        pool: sums a tensor over all processes, with gradients; the batch that is pooled is then the whole one.
    """

    def __init__(
        self,
        *,
        regions: Regions = (),
        batch_dice: bool = False,
        pool: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.regions, self.batch_dice, self._pool = regions, batch_dice, pool

    def forward(self, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """outputs: logits [N, classes or regions, *spatial / 2**i]; target: labels [N, 1, *spatial], float."""
        total = outputs[0].new_zeros(())
        for i, (weight, logits) in enumerate(zip(head_weights(len(outputs)), outputs, strict=True)):
            labels = target if i == 0 else F.interpolate(target, size=logits.shape[2:], mode="nearest")
            total = total + weight * self._term(logits.float(), labels)
        return total

    def _term(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.regions:
            truth, foreground = region_masks(labels, self.regions), logits.sigmoid()
            entropy = F.binary_cross_entropy_with_logits(logits, truth)
        else:
            truth, foreground = one_hot(labels, logits.shape[1])[:, 1:], logits.softmax(1)[:, 1:]
            entropy = F.cross_entropy(logits, labels[:, 0].long())
        axes = tuple(range(2, logits.dim()))
        overlap, size = (foreground * truth).sum(axes), (foreground + truth).sum(axes)  # [N, foreground]
        if self.batch_dice:
            overlap, size = overlap.sum(0), size.sum(0)
            if self._pool is not None:
                overlap, size = self._pool(overlap), self._pool(size)
        dice = (2 * overlap + SMOOTH) / (size + SMOOTH)
        term: Tensor = 1 - dice.mean() + entropy
        return term


def region_masks(labels: Tensor, regions: Regions) -> Tensor:
    """Label values [N, 1, *spatial] -> 1 inside each region and 0 elsewhere, [N, regions, *spatial] float32."""
    return torch.cat([torch.isin(labels, labels.new_tensor(values)) for values in regions], 1).float()
