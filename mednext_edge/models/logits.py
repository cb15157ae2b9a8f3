"""What the outputs of a network mean, whatever their number: one alone is of class 1, against 0 of class 0.

The softmax of the two is the sigmoid of the one, and the larger of them is class 1 where it is above 0. The
outputs of a network for regions do not exclude each other: see `mednext_edge.task.Region`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mednext_edge.task import Paint


def per_class(logits: Tensor, axis: int = 1) -> Tensor:
    """Logits of every class.

    Args:
        logits: of length 1 or more along the axis of the classes.
    """
    return torch.cat((torch.zeros_like(logits), logits), axis) if logits.shape[axis] == 1 else logits


def decided(logits: NDArray[np.floating], paints: Sequence[Paint] = ()) -> NDArray[np.intp]:
    """[N, classes, ...] -> the best class, [N, ...].

    Args:
        paints: of regions, what each leaves (`Task.paints`); the last one above 0 stays.
    """
    if not paints:
        best: NDArray[np.intp] = (logits[:, 0] > 0).astype(np.intp) if logits.shape[1] == 1 else logits.argmax(1)
        return best
    found = np.zeros((len(logits), *logits.shape[2:]), np.intp)
    for paint in paints:
        found[logits[:, paint.output] > 0] = paint.value
    return found


def foreground_masks(logits: NDArray[np.floating], *, regions: bool = False) -> NDArray[np.bool_]:
    """[N, classes, ...] -> where each class but the first is, or each region, [N, classes - 1 or regions, ...]."""
    if regions:
        return logits > 0
    best = decided(logits)
    return np.stack([best == label for label in range(1, max(2, logits.shape[1]))], axis=1)
