"""A MedNeXt in INT8 for our CPU kernels: its numbers, checked.

Every block reads its input in INT8 (one step a tensor), leaves the sums of its depthwise convolution in 16 bits, norms
each channel in float, rounds again, and takes both products in INT8. Between them GELU is a table: its input is rounded
to one of 256 lines, of which the table knows the result. The residual stream is bfloat16; stem and head are float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mednext_edge.errors import UsageError
from mednext_edge.ops.net_parts import AnyBlock, AnyNet, Form, check_tensor

LINES = 256


@dataclass(frozen=True)
class Dense8:
    """A 1x1x1 convolution in INT8: what it gives is (weight x) * scale + bias.

    A bias below 2^22 sums is rounded to whole ones, `scale * round(bias / scale)`, as that of ONNX's `QLinearConv`.

    Attributes:
        weight: [out, in] int8.
        scale, bias: [out] float32.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def check(self, name: str, shape: tuple[int, int]) -> None:
        """Raises UsageError for another shape or type."""
        check_tensor(f"{name}.weight", self.weight, torch.int8, shape)
        check_tensor(f"{name}.scale", self.scale, torch.float32, shape[:1])
        check_tensor(f"{name}.bias", self.bias, torch.float32, shape[:1])


@dataclass(frozen=True, kw_only=True)
class Block8(AnyBlock[Dense8]):
    """One block in INT8.

    Attributes:
        in_step: one step of the input's INT8.
        depthwise: of int8.
        depthwise_scale: [parities, C] float32: what one unit of a sum is; `Form.UP` has 2 parities an axis, others 1.
        norm_step: one step of the INT8 of what is normed.
        expand: gives lines -128..127 of the table.
        table: [256] uint8, what the lines become.
        compress: of these.

    Raises:
        UsageError: a tensor of another shape or type.
    """

    in_step: float
    depthwise_scale: Tensor
    norm_step: float
    table: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        parities = 2**self.dims if self.form is Form.UP else 1
        check_tensor("depthwise", self.depthwise, torch.int8, tuple(self.depthwise.shape))
        check_tensor("depthwise_scale", self.depthwise_scale, torch.float32, (parities, self.c_in))
        check_tensor("table", self.table, torch.uint8, (LINES,))
        for name in ("in_step", "norm_step"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"found {name} {getattr(self, name)}; expected a positive number")


@dataclass(frozen=True)
class Net8(AnyNet[Block8]):
    """A network in INT8."""
