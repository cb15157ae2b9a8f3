"""Random networks in INT8."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mednext_edge.ops.int8_net import Block8, Dense8, Net8
from mednext_edge.ops.net_parts import Dense, Form
from tests.ops.small_mednext import small_mednext

STEP = 0.05


class Draw:
    """Draws blocks from a generator of its own."""

    def __init__(self, seed: int) -> None:
        self.g = torch.Generator().manual_seed(seed)

    def ints(self, *shape: int) -> Tensor:
        return torch.randint(-127, 128, shape, generator=self.g, dtype=torch.int8)

    def floats(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.g)

    def scales(self, *shape: int) -> Tensor:
        return 0.5 + torch.rand(*shape, generator=self.g)

    def dense8(self, out: int, c_in: int, size: float) -> Dense8:
        """What it gives is about as large as `size`, if what it takes is about 40 levels."""
        return Dense8(
            self.ints(out, c_in), self.scales(out) * size / (40 * 70 * c_in**0.5), self.floats(out) * size / 4
        )

    def dense(self, out: int, c_in: int) -> Dense:
        return Dense(self.floats(out, c_in) / c_in**0.5, self.floats(out))

    def block(
        self, form: Form, kernel: int, dims: int, channels: tuple[int, int, int], *, residual: bool = True
    ) -> Block8:
        """Of `channels` in, hidden, out."""
        c_in, hidden, out = channels
        shortcut = residual and form is not Form.SAME
        return Block8(
            form=form,
            residual=residual,
            in_step=STEP,
            depthwise=self.ints(c_in, *(kernel,) * dims),
            depthwise_scale=self.scales(2**dims if form is Form.UP else 1, c_in) / 10_000,
            eps=1e-5,
            norm_step=STEP / 2,
            expand=self.dense8(hidden, c_in, 40),
            table=(F.gelu(torch.arange(-128, 128) / 32) * 50 + 20).round().to(torch.uint8),
            compress=self.dense8(out, hidden, 0.7),
            shortcut=self.dense8(out, c_in, 0.7) if shortcut else None,
        )


def draw_net(
    kernel: int = 3, dims: int = 3, width: int = 16, levels: int = 2, *, residual: bool = True, seed: int = 0
) -> Net8:
    """A small MedNeXt for 2 channels and 3 classes, one block a stage."""
    draw = Draw(seed)
    blocks = tuple(
        draw.block(form, kernel, dims, channels, residual=residual) for form, channels in small_mednext(width, levels)
    )
    return Net8(draw.dense(width, 2), blocks, draw.dense(3, width))
