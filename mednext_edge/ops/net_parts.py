"""What networks of our CPU kernels have in common, whatever they compute in: blocks and their order, checked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from mednext_edge.errors import UsageError

KERNELS = (3, 5, 7)


class Form(Enum):
    """What the depthwise convolution of a block does to the size."""

    SAME = "same"
    DOWN = "down"
    UP = "up"


class Product(Protocol):
    """A 1x1x1 convolution, in any arithmetic."""

    @property
    def weight(self) -> Tensor:
        """[out, in]."""

    def check(self, name: str, shape: tuple[int, int]) -> None:
        """Raises UsageError for another shape or type."""


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
        self.check("a layer's", (out, self.weight.shape[-1] if self.weight.dim() == 2 else 0))

    def check(self, name: str, shape: tuple[int, int]) -> None:
        """Raises UsageError for another shape or type."""
        check_tensor(f"{name} weight", self.weight, torch.float32, shape)
        check_tensor(f"{name} bias", self.bias, torch.float32, shape[:1])


P = TypeVar("P", bound=Product)


@dataclass(frozen=True, kw_only=True)
class AnyBlock(Generic[P]):
    """One block.

    Attributes:
        form: of the depthwise convolution.
        residual: whether its input is added; where the size changes, through `shortcut`.
        depthwise: [C, *kernel]; of `Form.UP` as a transposed convolution has them.
        eps: of the norm.
        expand: [hidden, C].
        compress: [out, hidden].
        shortcut: [out, C] of the block's input, where the size changes and there is a residual.

    Raises:
        UsageError: a tensor of another shape or type.
    """

    form: Form
    residual: bool
    depthwise: Tensor
    eps: float
    expand: P
    compress: P
    shortcut: P | None = None

    def __post_init__(self) -> None:
        if self.depthwise.dim() not in (3, 4) or len({*self.depthwise.shape[1:]}) != 1:
            raise UsageError(
                f"found a depthwise kernel {tuple(self.depthwise.shape)}; expected [C, k, k] or [C, k, k, k]"
            )
        if self.kernel not in KERNELS:
            raise UsageError(f"found a depthwise kernel of {self.kernel}; expected 3, 5 or 7")
        if not 0 <= self.eps < float("inf"):
            raise UsageError(f"found eps {self.eps}; expected a number that is not negative")
        self.expand.check("expand", (self.hidden, self.c_in))
        self.compress.check("compress", (self.c_out, self.hidden))
        if (self.shortcut is not None) != (self.residual and self.form is not Form.SAME):
            raise UsageError("found a shortcut that is missing or without use; it belongs to residuals of another size")
        if self.shortcut is not None:
            self.shortcut.check("shortcut", (self.c_out, self.c_in))

    @property
    def dims(self) -> int:
        """Spatial axes."""
        return self.depthwise.dim() - 1

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


B = TypeVar("B", bound=AnyBlock[Any])


@dataclass(frozen=True)
class AnyNet(Generic[B]):
    """Stem, blocks in their order, head. An up block adds the last stream of the size that it makes.

    Raises:
        UsageError: the blocks do not fit to one another.
    """

    stem: Dense
    blocks: tuple[B, ...]
    head: Dense

    def __post_init__(self) -> None:
        widths, deepest = [len(self.stem.weight)], 1
        for i, block in enumerate(self.blocks):
            if block.form is Form.UP and len(widths) > 1:
                expected = (widths.pop(), widths[-1])
            else:
                expected = (widths[-1], block.c_out if block.form is Form.DOWN else widths[-1])
            once = block.form is not Form.DOWN or len(widths) == deepest
            if (block.c_in, block.c_out) != expected or not once or block.dims != self.dims:
                raise UsageError(f"block {i} ({block.form.value}, {block.c_in} to {block.c_out}) does not fit here")
            if block.form is Form.DOWN:
                widths.append(block.c_out)
                deepest += 1
        if not self.blocks or len(widths) != 1 or self.head.weight.shape[1] != widths[0]:
            raise UsageError(f"found levels {widths} in front of a head for {self.head.weight.shape[1]} channels")

    @property
    def dims(self) -> int:
        """Spatial axes."""
        return self.blocks[0].dims

    @property
    def divisor(self) -> int:
        """Every side of an image must be a multiple of this."""
        return int(2 ** sum(block.form is Form.DOWN for block in self.blocks))


def check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raises UsageError for another type or shape, no elements, or numbers that are not finite."""
    if tensor.dtype != dtype or tuple(tensor.shape) != shape or not tensor.is_contiguous() or not all(shape):
        raise UsageError(
            f"found {name} {tensor.dtype} {tuple(tensor.shape)}; expected contiguous {dtype} with the shape {shape}"
        )
    if dtype.is_floating_point and not tensor.isfinite().all():
        raise UsageError(f"found numbers in {name} that are not finite")


def tensors(part: object) -> dict[str, Tensor]:
    """The tensors of a layer or block by name, those of its own parts as `expand.weight`."""
    found: dict[str, Tensor] = {}
    for field in fields(part):  # type: ignore[arg-type]
        value = getattr(part, field.name)
        if isinstance(value, Tensor):
            found[field.name] = value
        elif hasattr(value, "weight"):
            found |= {f"{field.name}.{name}": tensor for name, tensor in tensors(value).items()}
    return found
