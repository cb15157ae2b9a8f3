"""A MedNeXt in INT8 for our CPU kernels: its numbers, checked.

Every block reads its input in INT8 (one step a tensor), leaves the sums of its depthwise convolution in 16 bits, norms
each channel in float, rounds again, and takes both products in INT8. Between them GELU is a table: its input is rounded
to one of 256 lines, of which the table knows the result. The residual stream is bfloat16; stem and head are float32.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum

import torch
from torch import Tensor

from mednext_edge.errors import UsageError

LINES = 256


class Form(Enum):
    """What the depthwise convolution of a block does to the size."""

    SAME = "same"
    DOWN = "down"
    UP = "up"


@dataclass(frozen=True)
class Dense:
    """A 1x1x1 convolution in float.

    Attributes:
        weight: [out, in] float32.
        bias: [out] float32.
    """

    weight: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        out = self.weight.shape[0] if self.weight.dim() else 0
        _check("weight", self.weight, torch.float32, (out, self.weight.shape[-1] if self.weight.dim() == 2 else 0))
        _check("bias", self.bias, torch.float32, (out,))


@dataclass(frozen=True)
class Dense8:
    """A 1x1x1 convolution in INT8: what it gives is (weight x) * scale + bias.

    Attributes:
        weight: [out, in] int8.
        scale, bias: [out] float32.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def check(self, name: str, shape: tuple[int, int]) -> None:
        """Raises UsageError for another shape or type."""
        _check(f"{name}.weight", self.weight, torch.int8, shape)
        _check(f"{name}.scale", self.scale, torch.float32, shape[:1])
        _check(f"{name}.bias", self.bias, torch.float32, shape[:1])


@dataclass(frozen=True)
class Block8:
    """One block.

    Attributes:
        form: of the depthwise convolution.
        residual: whether its input is added; where the size changes, through `shortcut`.
        in_step: one step of the input's INT8.
        depthwise: [C, *kernel] int8; of `Form.UP` as a transposed convolution has them.
        depthwise_scale: [parities, C] float32: what one unit of a sum is; `Form.UP` has 2 parities an axis, others 1.
        eps: of the norm.
        norm_step: one step of the INT8 of what is normed.
        expand: [hidden, C], gives lines -128..127 of the table.
        table: [256] uint8, what the lines become.
        compress: [out, hidden], of these.
        shortcut: [out, C] of the block's input, where the size changes and there is a residual.

    Raises:
        UsageError: a tensor of another shape or type.
    """

    form: Form
    residual: bool
    in_step: float
    depthwise: Tensor
    depthwise_scale: Tensor
    eps: float
    norm_step: float
    expand: Dense8
    table: Tensor
    compress: Dense8
    shortcut: Dense8 | None = None

    def __post_init__(self) -> None:
        if self.depthwise.dim() not in (3, 4) or len({*self.depthwise.shape[1:]}) != 1:
            raise UsageError(
                f"found a depthwise kernel {tuple(self.depthwise.shape)}; expected [C, k, k] or [C, k, k, k]"
            )
        if self.kernel not in (3, 5, 7):
            raise UsageError(f"found a depthwise kernel of {self.kernel}; expected 3, 5 or 7")
        parities = 2 ** (self.depthwise.dim() - 1) if self.form is Form.UP else 1
        _check("depthwise", self.depthwise, torch.int8, tuple(self.depthwise.shape))
        _check("depthwise_scale", self.depthwise_scale, torch.float32, (parities, self.c_in))
        _check("table", self.table, torch.uint8, (LINES,))
        self.expand.check("expand", (self.hidden, self.c_in))
        self.compress.check("compress", (self.c_out, self.hidden))
        if (self.shortcut is not None) != (self.residual and self.form is not Form.SAME):
            raise UsageError("found a shortcut that is missing or without use; it belongs to residuals of another size")
        if self.shortcut is not None:
            self.shortcut.check("shortcut", (self.c_out, self.c_in))
        for name in ("in_step", "norm_step"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"found {name} {getattr(self, name)}; expected a positive number")

    @property
    def kernel(self) -> int:
        """Its side."""
        return self.depthwise.shape[-1]

    @property
    def c_in(self) -> int:
        """Channels of the input."""
        return len(self.depthwise)

    @property
    def hidden(self) -> int:
        """Channels of the hidden tensor."""
        return len(self.expand.weight)

    @property
    def c_out(self) -> int:
        """Channels of the result."""
        return len(self.compress.weight)


@dataclass(frozen=True)
class Net8:
    """Stem, blocks in their order, head. An up block adds the last stream of the size that it makes.

    Raises:
        UsageError: the blocks do not fit to one another.
    """

    stem: Dense
    blocks: tuple[Block8, ...]
    head: Dense

    def __post_init__(self) -> None:
        widths, deepest = [len(self.stem.weight)], 1
        for i, block in enumerate(self.blocks):
            if block.form is Form.UP and len(widths) > 1:
                expected = (widths.pop(), widths[-1])
            else:
                expected = (widths[-1], block.c_out if block.form is Form.DOWN else widths[-1])
            once = block.form is not Form.DOWN or len(widths) == deepest
            dims = block.depthwise.dim() == self.blocks[0].depthwise.dim()
            if (block.c_in, block.c_out) != expected or not once or not dims:
                raise UsageError(f"block {i} ({block.form.value}, {block.c_in} to {block.c_out}) does not fit here")
            if block.form is Form.DOWN:
                widths.append(block.c_out)
                deepest += 1
        if len(widths) != 1 or self.head.weight.shape[1] != widths[0]:
            raise UsageError(f"found levels {widths} in front of a head for {self.head.weight.shape[1]} channels")

    @property
    def dims(self) -> int:
        """Spatial axes."""
        return self.blocks[0].depthwise.dim() - 1

    @property
    def divisor(self) -> int:
        """Every side of an image must be a multiple of this."""
        return int(2 ** sum(block.form is Form.DOWN for block in self.blocks))


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape or not tensor.is_contiguous() or not all(shape):
        raise UsageError(
            f"found {name} {tensor.dtype} {tuple(tensor.shape)}; expected contiguous {dtype} with the shape {shape}"
        )
    if dtype.is_floating_point and not tensor.isfinite().all():
        raise UsageError(f"found numbers in {name} that are not finite")


def tensors(part: Dense | Dense8 | Block8) -> dict[str, Tensor]:
    """The tensors of a part by name, those of its own parts as `expand.weight`."""
    found: dict[str, Tensor] = {}
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, Tensor):
            found[field.name] = value
        elif isinstance(value, (Dense, Dense8)):
            found |= {f"{field.name}.{name}": tensor for name, tensor in tensors(value).items()}
    return found
