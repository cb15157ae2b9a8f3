"""One-group-per-channel GroupNorm as instance norm on the tensor as it stands.

GroupNorm reaches the exporters as reshape -> norm -> reshape, which freezes the spatial size and
forces a planar layout; instance norm becomes MVN (OpenVINO) or InstanceNormalization (ONNX) on the
same 5-D tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mednext_edge.fusion.rewrite import Rewrite
from mednext_edge.models.mednext import Block


class InstanceNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) over the spatial axes of each sample and channel; no affine.

    [N, C, *spatial] -> the same; biased variance. In half precision the statistics stay in float32: sums
    over a whole volume overflow float16.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float16:
            return F.instance_norm(x.float(), eps=self.eps).half()
        return F.instance_norm(x, eps=self.eps)


def is_per_channel(norm: nn.Module) -> bool:
    """Whether a norm averages every channel of every sample apart."""
    return isinstance(norm, InstanceNorm) or (isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels)


def use_instance_norm(net: nn.Module) -> int:
    """Replace every affine-less per-channel GroupNorm of the blocks by `InstanceNorm`."""
    count = 0
    for block in net.modules():
        if isinstance(block, Block) and isinstance(block.norm, nn.GroupNorm) and is_per_channel(block.norm):
            if block.norm.affine:
                continue  # the affine is folded first; without that this form would cost a pass more
            block.norm = InstanceNorm(block.norm.eps)
            count += 1
    return count


REWRITE = Rewrite(use_instance_norm, "per-channel GroupNorm as instance norm, no reshape")
