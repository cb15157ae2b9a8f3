"""Look-ups in a state_dict that name the tensor when it is not there or not possible."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from mednext_edge.errors import CheckpointError


class Shapes:
    """The shapes of a state_dict's tensors; every method raises CheckpointError for what is not there."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state

    def shape(self, name: str, axes: int | None = None) -> tuple[int, ...]:
        """Of one tensor, which must have `axes` axes if that is said."""
        if name not in self.state:
            raise CheckpointError(f"the tensor `{name}` is missing; found {len(self.state)} others")
        shape = tuple(self.state[name].shape)
        if axes is not None and len(shape) != axes:
            raise CheckpointError(f"`{name}` has shape {shape}; expected {axes} axes")
        return shape

    def count(self, pattern: str, what: str) -> int:
        """How many numbered parts there are; they must run from 0 without gaps."""
        found = sorted({int(m[1]) for name in self.state if (m := re.match(pattern, name))})
        if not found or found != list(range(len(found))):
            raise CheckpointError(f"found {what} numbered {found[:8]}; expected 0, 1, 2, ... without gaps")
        return len(found)

    def first(self, names: Iterable[str], axis: int, bias: str) -> int:
        """The length of an axis of the first tensor that is there, or of the bias."""
        names = list(names)
        for name in names:
            if name in self.state and self.state[name].dim() > axis:
                return int(self.state[name].shape[axis])
        if bias in self.state and self.state[bias].dim() == 1:
            return int(self.state[bias].shape[0])
        raise CheckpointError(f"the tensors `{names[0]}` and `{bias}` are missing or have no axis {axis}")

    def ratio(self, parts: list[str], width: int) -> int:
        """Hidden width over width, from whichever block still has its expansion convolution."""
        hidden = self.first((f"{p}.conv2.weight" for p in parts), axis=0, bias=f"{parts[0]}.conv2.bias")
        if hidden % width or not hidden:
            raise CheckpointError(
                f"{parts[0]}.conv2.weight makes {hidden} channels out of {width}; expected a whole multiple"
            )
        return hidden // width

    def kernel(self, stages: Iterable[str], resamplers: Iterable[str]) -> int:
        """Of the first depthwise convolution that is there."""
        names = [f"{stage}.0.conv1.weight" for stage in stages] + [f"{name}.conv1.weight" for name in resamplers]
        return self.first(names, axis=2, bias="")
