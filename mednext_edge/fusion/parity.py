"""The stride-2 transposed depthwise convolutions in their parity form (see `ops.parity`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from mednext_edge.fusion.rewrite import Rewrite
from mednext_edge.models.mednext import UpBlock
from mednext_edge.ops.parity import conv_transpose_parity, parity_weights

TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)


class ParityConvTranspose(nn.Module):
    """[N, C, *n] -> [N, C, *2n-1], equal to a stride-2 transposed depthwise convolution without bias."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.kernel, self.dims = weight.shape[-1], weight.dim() - 2
        self.paddings: list[tuple[int, ...]] = []
        for i, (sub, padding) in enumerate(parity_weights(weight)):
            self.register_parameter(f"weight_{i}", nn.Parameter(sub))
            self.paddings.append(padding)
        self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        weights = [(self.get_parameter(f"weight_{i}"), padding) for i, padding in enumerate(self.paddings)]
        return conv_transpose_parity(x, weights)


def transposed_blocks(net: nn.Module) -> Iterator[tuple[str, UpBlock]]:
    """The up blocks, by name, whose transposed depthwise convolution has no bias: those that can take either form."""
    for name, block in net.named_modules():
        transposed = isinstance(block, UpBlock) and isinstance(block.conv1, TRANSPOSED) and block.conv1.bias is None
        if transposed:
            assert isinstance(block, UpBlock)
            yield name, block


def use_parity(net: nn.Module, names: Collection[str] | None = None) -> int:
    """Replace the transposed depthwise convolutions of these up blocks by their parity form; None takes all."""
    count = 0
    for name, block in list(transposed_blocks(net)):
        if names is None or name in names:
            assert isinstance(block.conv1, TRANSPOSED)
            with torch.no_grad():
                block.conv1 = ParityConvTranspose(block.conv1.weight)
            count += 1
    return count


REWRITE = Rewrite(use_parity, "transposed depthwise convolutions as parities", optional=True)
