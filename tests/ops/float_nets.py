"""Random networks in float."""

from __future__ import annotations

import torch
from torch import Tensor

from mednext_edge.ops.float_net import FloatBlock, FloatNet, FloatPrecision
from mednext_edge.ops.net_parts import Dense, Form
from tests.ops.small_mednext import small_mednext


class Draw:
    """Draws blocks from a generator of its own."""

    def __init__(self, seed: int) -> None:
        self.g = torch.Generator().manual_seed(seed)

    def floats(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.g)

    def dense(self, out: int, c_in: int) -> Dense:
        return Dense(self.floats(out, c_in) / c_in**0.5, self.floats(out))

    def block(
        self, form: Form, kernel: int, dims: int, channels: tuple[int, int, int], *, residual: bool = True
    ) -> FloatBlock:
        """Of `channels` in, hidden, out."""
        c_in, hidden, out = channels
        shortcut = residual and form is not Form.SAME
        return FloatBlock(
            form=form,
            residual=residual,
            depthwise=self.floats(c_in, *(kernel,) * dims) / kernel ** (dims / 2),
            eps=1e-5,
            expand=self.dense(hidden, c_in),
            compress=self.dense(out, hidden),
            shortcut=self.dense(out, c_in) if shortcut else None,
        )


def draw_net(
    kernel: int = 3,
    dims: int = 3,
    width: int = 16,
    levels: int = 2,
    *,
    residual: bool = True,
    precision: FloatPrecision = "fp32",
    seed: int = 0,
) -> FloatNet:
    """A small MedNeXt for 2 channels and 3 classes, one block a stage."""
    draw = Draw(seed)
    blocks = tuple(
        draw.block(form, kernel, dims, channels, residual=residual) for form, channels in small_mednext(width, levels)
    )
    return FloatNet(draw.dense(width, 2), blocks, draw.dense(3, width), precision)
