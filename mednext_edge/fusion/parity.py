"""The stride-2 transposed depthwise convolutions in their parity form (see `ops.parity`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mednext_edge.fusion.rewrite import Rewrite
from mednext_edge.models.mednext import UpBlock
from mednext_edge.ops.parity import conv_transpose_parity, parity_weights


class ParityConvTranspose(nn.Module):
    """[N, C, *n] -> [N, C, *2n-1], equal to a stride-2 transposed depthwise convolution without bias."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.paddings: list[tuple[int, ...]] = []
        for i, (sub, padding) in enumerate(parity_weights(weight)):
            self.register_parameter(f"weight_{i}", nn.Parameter(sub))
            self.paddings.append(padding)
        self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        weights = [(self.get_parameter(f"weight_{i}"), padding) for i, padding in enumerate(self.paddings)]
        return conv_transpose_parity(x, weights)


def use_parity(net: nn.Module) -> int:
    """Replace every bias-free transposed depthwise convolution of the up blocks by its parity form."""
    count = 0
    for block in net.modules():
        if not isinstance(block, UpBlock):
            continue
        old = block.conv1
        if isinstance(old, (nn.ConvTranspose2d, nn.ConvTranspose3d)) and old.bias is None:
            with torch.no_grad():
                block.conv1 = ParityConvTranspose(old.weight)
            count += 1
    return count


REWRITE = Rewrite(use_parity, "transposed depthwise convolutions as parities", optional=True)
