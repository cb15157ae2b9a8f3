"""A MedNeXt in float32 or bfloat16 for our CPU kernels: its numbers, checked.

Every block leaves its depthwise convolution with the moments that the norm of each channel needs; norm, expansion,
GELU, compression and the sum go through in one pass. In bfloat16 tensors and the weights of products are rounded, and
everything is summed in float32; stem and head are float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from mednext_edge.errors import UsageError
from mednext_edge.ops.net_parts import AnyBlock, AnyNet, Dense, check_tensor

FloatPrecision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class FloatBlock(AnyBlock[Dense]):
    """One block in float. The shortcut of `Form.UP` is added to every second voxel alone: what it adds to all of them
    is in the bias of `compress`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tensor("depthwise", self.depthwise, torch.float32, tuple(self.depthwise.shape))


@dataclass(frozen=True)
class FloatNet(AnyNet[FloatBlock]):
    """A network in float.

    Attributes:
        precision: `fp32`, or `bf16`.
    """

    precision: FloatPrecision = "fp32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision not in get_args(FloatPrecision):
            raise UsageError(f"found the precision {self.precision}; expected fp32 or bf16")
