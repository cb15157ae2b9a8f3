"""The 3-D depthwise convolutions through the operators of `ops.depthwise3d`, which run our own kernels."""

from __future__ import annotations

from torch import Tensor, nn

from mednext_edge.fusion.rewrite import Rewrite
from mednext_edge.models.mednext import Block
from mednext_edge.ops.depthwise3d import STRIDES, depthwise3d


class DepthwiseConv3d(nn.Module):
    """A depthwise convolution or transposed convolution with padding k // 2; parameters named as in torch's.

    [N, C, *n] -> [N, C, *m], see `depthwise3d`. It trains as well as it infers.
    """

    def __init__(self, conv: nn.Conv3d | nn.ConvTranspose3d) -> None:
        super().__init__()
        self.weight = conv.weight
        self.bias = conv.bias
        self.stride = conv.stride[0]
        self.transposed = isinstance(conv, nn.ConvTranspose3d)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise3d(x, self.weight, self.bias, stride=self.stride, transposed=self.transposed)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, kernel={self.weight.shape[-1]}, stride={self.stride}" + (
            ", transposed" if self.transposed else ""
        )


def fits(conv: nn.Module) -> bool:
    """Whether the operators compute this convolution."""
    if not isinstance(conv, (nn.Conv3d, nn.ConvTranspose3d)):
        return False
    k = conv.kernel_size[0]
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and conv.kernel_size == (k,) * 3
        and k % 2 == 1
        and conv.padding == (k // 2,) * 3
        and conv.padding_mode == "zeros"
        and conv.dilation == (1,) * 3
        and conv.output_padding == (0,) * 3
        and conv.stride in [(s,) * 3 for s in STRIDES]
    )


def use_depthwise(net: nn.Module) -> int:
    """Replace the depthwise convolution of every 3-D block; state_dict keys and parameters stay as they are."""
    blocks = [block for block in net.modules() if isinstance(block, Block) and fits(block.conv1)]
    for block in blocks:
        conv = block.conv1
        assert isinstance(conv, (nn.Conv3d, nn.ConvTranspose3d))
        block.conv1 = DepthwiseConv3d(conv).train(conv.training)
    return len(blocks)


REWRITE = Rewrite(use_depthwise, "3-D depthwise convolutions by our own kernels", optional=True)
