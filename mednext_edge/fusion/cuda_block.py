"""Whole 3-D blocks through the operator of `ops.block3d`, which runs our CUDA kernels."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from mednext_edge.fusion.depthwise import DepthwiseConv, fits
from mednext_edge.fusion.instance_norm import is_per_channel
from mednext_edge.fusion.rewrite import Rewrite
from mednext_edge.models.mednext import Block, DownBlock, UpBlock
from mednext_edge.ops.block3d import block3d


class FusedBlock(nn.Module):
    """A `Block` in one operator, with the block's own layers: parameters and state_dict keys stay.

    [N, C, D, H, W] -> [N, C, D, H, W]. It trains as well as it infers.
    """

    front = 0

    def __init__(self, block: Block) -> None:
        super().__init__()
        conv = block.conv1
        assert isinstance(conv, (DepthwiseConv, nn.Conv3d, nn.ConvTranspose3d))
        self.conv1 = conv if isinstance(conv, DepthwiseConv) else DepthwiseConv(conv).train(conv.training)
        self.norm, self.conv2, self.conv3 = block.norm, block.conv2, block.conv3
        self.residual = block.residual
        if isinstance(block, (DownBlock, UpBlock)) and block.residual:
            self.res_conv = block.res_conv
        self.train(block.training)

    def shortcut(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is added to the output, of its shape, and the bias of the compression."""
        return x, self.conv3.bias

    def forward(self, x: Tensor) -> Tensor:
        residual, bias = self.shortcut(x) if self.residual else (None, self.conv3.bias)
        return block3d(
            x,
            self.conv1.weight,
            self.conv1.bias,
            cast("Tensor | None", getattr(self.norm, "weight", None)),
            cast("Tensor | None", getattr(self.norm, "bias", None)),
            self.conv2.weight,
            self.conv2.bias,
            self.conv3.weight,
            bias,
            residual,
            eps=cast(float, self.norm.eps),
            stride=self.conv1.stride,
            transposed=self.conv1.transposed,
            front=self.front,
        )


class FusedDownBlock(FusedBlock):
    """A `DownBlock` in one operator: [N, C, D, H, W] -> [N, 2C, D/2, H/2, W/2]."""

    def shortcut(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.res_conv(x), self.conv3.bias


class FusedUpBlock(FusedBlock):
    """An `UpBlock` in one operator: [N, C, D, H, W] -> [N, C/2, 2D, 2H, 2W]."""

    front = 1

    def shortcut(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The padded shortcut in one pass: padding the kernel in front shifts the image by that voxel.

        Its bias is not in the padding, so it goes with that of the compression, which is not there either.
        """
        weight, bias = cast(Tensor, self.res_conv.weight), cast("Tensor | None", self.res_conv.bias)
        shifted = F.conv_transpose3d(x, F.pad(weight, (self.front, 0) * 3), stride=2)
        biases = [b for b in (self.conv3.bias, bias) if b is not None]
        return shifted, sum(biases[1:], start=biases[0]) if biases else None


FUSED: dict[type[Block], type[FusedBlock]] = {Block: FusedBlock, DownBlock: FusedDownBlock, UpBlock: FusedUpBlock}


def _is_pointwise(conv: nn.Module) -> bool:
    return isinstance(conv, nn.Conv3d) and conv.kernel_size == conv.stride == (1,) * 3 and conv.groups == 1


def _block_fits(block: nn.Module) -> bool:
    """Whether the operator computes this block."""
    return (
        type(block) in FUSED
        and isinstance(block, Block)
        and not block.grn
        and (isinstance(block.conv1, DepthwiseConv) or fits(block.conv1))
        and is_per_channel(block.norm)
        and _is_pointwise(block.conv2)
        and _is_pointwise(block.conv3)
        and block.act.approximate == "none"
    )


def use_cuda_block(net: nn.Module) -> int:
    """Replace every 3-D block with a per-channel norm and without GRN; state_dict keys and parameters stay."""
    places = [(name, module) for name, module in net.named_modules() if name and _block_fits(module)]
    for name, block in places:
        parent, _, own = name.rpartition(".")
        assert isinstance(block, Block)
        setattr(net.get_submodule(parent), own, FUSED[type(block)](block))
    return len(places)


REWRITE = Rewrite(use_cuda_block, "whole 3-D blocks by our CUDA kernels", optional=True)
