"""What the outputs of a network mean, whatever their number: one alone is of class 1, against 0 of class 0.

The softmax of the two is the sigmoid of the one, and the larger of them is class 1 where it is above 0.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def per_class(logits: Tensor, axis: int = 1) -> Tensor:
    """Logits of every class.

    Args:
        logits: of length 1 or more along the axis of the classes.
    """
    return torch.cat((torch.zeros_like(logits), logits), axis) if logits.shape[axis] == 1 else logits


def decided(logits: NDArray[np.floating]) -> NDArray[np.intp]:
    """[N, classes, ...] -> the best class, [N, ...]."""
    best: NDArray[np.intp] = (logits[:, 0] > 0).astype(np.intp) if logits.shape[1] == 1 else logits.argmax(1)
    return best
