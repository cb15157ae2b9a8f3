"""Depthwise convolutions through the operators of `ops.depthwise3d`, which run our own kernels."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from mednext_edge.fusion.rewrite import Rewrite
from mednext_edge.models.mednext import Block
from mednext_edge.ops.depthwise3d import STRIDES, depthwise3d
from mednext_edge.ops.depthwise3d_cuda import specialised

FLAT = (nn.Conv2d, nn.ConvTranspose2d)
CONVOLUTIONS = (*FLAT, nn.Conv3d, nn.ConvTranspose3d)


class DepthwiseConv(nn.Module):
    """A depthwise convolution or transposed convolution with padding k // 2; parameters named as in torch's.

    [N, C, *n] -> [N, C, *m], see `depthwise3d`. It trains as well as it infers.
    """

    def __init__(self, conv: nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d) -> None:
        super().__init__()
        self.weight = conv.weight
        self.bias = conv.bias
        self.stride = conv.stride[0]
        self.transposed = isinstance(conv, (nn.ConvTranspose2d, nn.ConvTranspose3d))

    def forward(self, x: Tensor) -> Tensor:
        return depthwise3d(x, self.weight, self.bias, stride=self.stride, transposed=self.transposed)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, kernel={self.weight.shape[-1]}, stride={self.stride}" + (
            ", transposed" if self.transposed else ""
        )


def fits(conv: nn.Module) -> bool:
    """Whether the operators compute this convolution, in 2-D as one for which there is a kernel."""
    if not isinstance(conv, CONVOLUTIONS):
        return False
    dims, k, stride = len(conv.kernel_size), conv.kernel_size[0], conv.stride[0]
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and conv.kernel_size == (k,) * dims
        and k % 2 == 1
        and conv.padding == (k // 2,) * dims
        and conv.padding_mode == "zeros"
        and conv.dilation == (1,) * dims
        and conv.output_padding == (0,) * dims
        and conv.stride == (stride,) * dims
        and stride in STRIDES
        and (dims == 3 or specialised(dims, k, stride))
    )


def use_depthwise(net: nn.Module, dims: Collection[int] = (2, 3)) -> int:
    """Replace depthwise convolutions: in 3-D those of our blocks, in 2-D all that fit.

    State_dict keys and parameters stay as they are.

    Args:
        net: changed in place.
        dims: leave others than those with so many axes.

    Returns:
        How many were replaced.
    """
    places = [
        (parent, name, conv)
        for parent in net.modules()
        for name, conv in parent.named_children()
        if isinstance(conv, CONVOLUTIONS) and fits(conv) and len(conv.kernel_size) in dims
        if isinstance(conv, FLAT) or (isinstance(parent, Block) and name == "conv1")
    ]
    for parent, name, conv in places:
        setattr(parent, name, DepthwiseConv(conv).train(conv.training))
    return len(places)


REWRITE = Rewrite(use_depthwise, "depthwise convolutions by our own kernels", optional=True)
