"""Dice plus cross-entropy over every output of a deeply supervised network."""

from __future__ import annotations

from collections.abc import Sequence

from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.nn import functional as F


class SupervisedLoss(nn.Module):
    """sum_i w_i (soft Dice + cross-entropy) of logits at strides 1, 2, 4, ...; w_i halves and sums to one.

    nnU-Net's terms: softmax, background left out of the Dice (not of the cross-entropy), smoothing 1e-5
    in numerator and denominator. Targets are downsampled with nearest neighbours.

    Args:
        batch_dice: pool the batch before the Dice ratio.
    """

    def __init__(self, *, batch_dice: bool = False) -> None:
        super().__init__()
        self.term = DiceCELoss(
            include_background=False, to_onehot_y=True, softmax=True, smooth_nr=1e-5, smooth_dr=1e-5, batch=batch_dice
        )

    def forward(self, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """outputs: logits [N, classes, *spatial / 2**i]; target: class indices [N, 1, *spatial], float."""
        total = outputs[0].new_zeros(())
        scale = 1 / sum(0.5**i for i in range(len(outputs)))
        for i, logits in enumerate(outputs):
            labels = target if i == 0 else F.interpolate(target, size=logits.shape[2:], mode="nearest")
            total = total + scale * 0.5**i * self.term(logits.float(), labels)
        return total
