"""The feed-forward half of a MedNeXt block in INT8 on a CPU: a prototype of a native engine.

Both products, the GELU between them and the residual sum in one pass; the hidden tensor never leaves the cache. GELU
is a table of 256 entries, so its input is rounded to INT8 too. `benchmarks/feed_forward_int8.py` times it beside
OpenVINO.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mednext_edge.errors import UsageError
from mednext_edge.ops import cpu_library

WEIGHT_LEVELS = 63
"""Of weights: a processor without VNNI adds two products in 16 bits."""


@dataclass(frozen=True)
class FeedForward8:
    """Its weights.

    Attributes:
        expand: [hidden, C] int8 within -63..63.
        expand_scale, expand_bias: [hidden] float32: from sums of products to lines of the table.
        table: [256] int8: what the lines -128..127 become.
        compress: [out, hidden] int8 within -63..63.
        compress_scale, compress_bias: [out] float32: from sums of products to the result.

    Raises:
        UsageError: a tensor of another shape or type, or a weight beyond its range.
    """

    expand: Tensor
    expand_scale: Tensor
    expand_bias: Tensor
    table: Tensor
    compress: Tensor
    compress_scale: Tensor
    compress_bias: Tensor

    def __post_init__(self) -> None:
        hidden, channels = self.expand.shape
        out = len(self.compress)
        expected = {
            "expand": (torch.int8, (hidden, channels)),
            "expand_scale": (torch.float32, (hidden,)),
            "expand_bias": (torch.float32, (hidden,)),
            "table": (torch.int8, (256,)),
            "compress": (torch.int8, (out, hidden)),
            "compress_scale": (torch.float32, (out,)),
            "compress_bias": (torch.float32, (out,)),
        }
        for name, (dtype, shape) in expected.items():
            found: Tensor = getattr(self, name)
            if found.dtype != dtype or tuple(found.shape) != shape or not found.is_contiguous():
                raise UsageError(
                    f"found {name} {found.dtype} {tuple(found.shape)}; expected contiguous {dtype} {shape}"
                )
        for weights in (self.expand, self.compress):
            if weights.short().abs().amax() > WEIGHT_LEVELS:
                raise UsageError(
                    f"found weights up to {weights.short().abs().amax()}; expected {WEIGHT_LEVELS} at most"
                )


def gelu_table(step: float, threshold: float) -> Tensor:
    """[256] int8: GELU of `step` times -128..127, in 127ths of `threshold`, clamped."""
    x = step * torch.arange(-128, 128, dtype=torch.float64)
    return (F.gelu(x) * (127 / threshold)).round().clamp(-127, 127).to(torch.int8)


class PackedFeedForward:
    """A feed-forward as the kernels of this processor read it.

    Raises:
        MednextEdgeError: the library is missing, or there is not enough memory.
    """

    def __init__(self, weights: FeedForward8) -> None:
        self.hidden, self.channels = weights.expand.shape
        self.out = len(weights.compress)
        tensors = {name: tensor.data_ptr() for name, tensor in vars(weights).items()}
        self._packed = cpu_library.pack(
            cpu_library.FeedForward(c_in=self.channels, hidden=self.hidden, c_out=self.out, **tensors)
        )
        weakref.finalize(self, cpu_library.free, self._packed)

    def __call__(self, x: Tensor, residual: Tensor | None, *, out: Tensor | None = None) -> Tensor:
        """y = compress table[expand x] + residual.

        Args:
            x: [voxels, C] int8, within -127..127.
            residual: [voxels, out] bfloat16.
            out: takes the result, contiguous; may be the residual.

        Returns:
            [voxels, out] bfloat16.

        Raises:
            UsageError: a tensor does not fit the weights.
        """
        if x.dtype != torch.int8 or x.ndim != 2 or x.shape[1] != self.channels or not len(x):
            raise UsageError(f"found x {x.dtype} {tuple(x.shape)}; expected torch.int8 [voxels, {self.channels}]")
        expected = (len(x), self.out)
        for name, given in (("residual", residual), ("out", out)):
            if given is not None and (given.dtype != torch.bfloat16 or given.shape != expected):
                raise UsageError(f"found {name} {given.dtype} {tuple(given.shape)}; expected torch.bfloat16 {expected}")
        if out is not None and not out.is_contiguous():
            raise UsageError("found out with strides; expected a contiguous tensor")
        y = torch.empty(expected, dtype=torch.bfloat16) if out is None else out
        x, residual = x.contiguous(), None if residual is None else residual.contiguous()
        cpu_library.call("ffn_int8", self._packed, len(x), x, residual, y)
        return y


def feed_forward_int8_twin(x: Tensor, weights: FeedForward8, residual: Tensor | None) -> Tensor:
    """What `PackedFeedForward` computes, by PyTorch: [voxels, out] float64, not rounded to bfloat16."""
    lines = F.linear(x.double(), weights.expand.double()) * weights.expand_scale + weights.expand_bias
    hidden = weights.table[lines.round().clamp(-128, 127).long() + 128]
    y = F.linear(hidden.double(), weights.compress.double()) * weights.compress_scale + weights.compress_bias
    return y if residual is None else y + residual
