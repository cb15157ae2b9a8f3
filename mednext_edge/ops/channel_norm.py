"""The norm of each sample and channel over all voxels, as an operator of PyTorch that trains.

    mednext::channel_norm            [N, C, D, H, W] -> the same; mean and 1 / deviation of each sample and channel
    mednext::channel_norm_backward   its gradients

PyTorch's GroupNorm in channels-last sums float32 numbers one after the other on CPUs, and is off by up to some percent
of a deviation over a whole volume. Our kernel sums in float64, for float32 on CPUs; the twins below run everywhere
else, as do float64 tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mednext_edge.errors import UsageError
from mednext_edge.ops import cpu_library
from mednext_edge.ops.depthwise3d import layout
from mednext_edge.ops.depthwise3d_cpu import channels_last

Statistics = tuple[Tensor, Tensor, Tensor]


def channel_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(biased variance + eps) * weight + bias, per sample and channel.

    It can be differentiated once. Under autocast it computes in float32.

    Args:
        x: [N, C, D, H, W].
        weight, bias: [C] or None.
        eps: added to the variance.

    Raises:
        UsageError: shapes are not of this kind.
    """
    if x.dim() != 5 or any(t is not None and t.shape != x.shape[1:2] for t in (weight, bias)):
        found = [None if t is None else tuple(t.shape) for t in (x, weight, bias)]
        raise UsageError(f"found shapes {found}; expected [N, C, D, H, W] and [C] or None for weight and bias")
    if x.dtype in (torch.float16, torch.bfloat16):
        scale, shift = (None if t is None else t.float() for t in (weight, bias))
        return channel_norm(x.float(), scale, shift, eps).to(x.dtype)
    y: Tensor = forward(x, weight, bias, eps)[0]
    return y


def _takes(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0


def _per_channel(t: Tensor) -> Tensor:
    """[C] or [N, C] against [N, C, D, H, W]."""
    return t[..., None, None, None]


def forward_twin(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Statistics:
    """Output, mean [N, C], 1 / sqrt(variance + eps) [N, C]."""
    variance, mean = torch.var_mean(x, (2, 3, 4), correction=0)
    rstd = (variance + eps).rsqrt()
    y = (x - _per_channel(mean)) * _per_channel(rstd if weight is None else rstd * weight)
    return (y if bias is None else y + _per_channel(bias)).contiguous(memory_format=layout(x)), mean, rstd


def backward_twin(grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor) -> Statistics:
    """Gradients of x, weight and bias."""
    normalised = (x - _per_channel(mean)) * _per_channel(rstd)
    product = (grad * normalised).sum((2, 3, 4))
    level = grad.mean((2, 3, 4))
    rest = grad - _per_channel(level) - normalised * _per_channel(product / x[0, 0].numel())
    scale = rstd if weight is None else rstd * weight
    grad_x = (rest * _per_channel(scale)).contiguous(memory_format=layout(x))
    return grad_x, product.sum(0), grad.sum((0, 2, 3, 4))


@torch.library.custom_op("mednext::channel_norm", mutates_args=())
def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Statistics:
    if not _takes(x):
        return forward_twin(x, weight, bias, eps)
    dense = channels_last(x)
    y = torch.empty_like(dense)
    mean, rstd = x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])
    affine = [None if t is None else t.contiguous() for t in (weight, bias)]
    cpu_library.call("channel_norm", *_sizes(x), dense, *affine, eps, y, mean, rstd)
    return y.contiguous(memory_format=layout(x)), mean, rstd


@torch.library.custom_op("mednext::channel_norm_backward", mutates_args=())
def backward(grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor) -> Statistics:
    if not _takes(x):
        return backward_twin(grad, x, weight, mean, rstd)
    grad, dense = channels_last(grad), channels_last(x)
    grad_x = torch.empty_like(dense)
    grad_weight, grad_bias = x.new_empty(x.shape[1]), x.new_empty(x.shape[1])
    scale = None if weight is None else weight.contiguous()
    results = (grad_x, grad_weight, grad_bias)
    cpu_library.call("channel_norm_backward", *_sizes(x), grad, dense, scale, mean, rstd, *results)
    return grad_x.contiguous(memory_format=layout(x)), grad_weight, grad_bias


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Samples, voxels of each, channels."""
    return x.shape[0], x[0, 0].numel(), x.shape[1]


@forward.register_fake
def _(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Statistics:
    return _empty(x), x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])


@backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor) -> Statistics:
    return _empty(x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


def _empty(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout(x))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Statistics) -> None:
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight, *output[1:])
    ctx.has_bias = bias is not None
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, mean, rstd = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = backward(grad, x, weight, mean, rstd)
    return grad_x, None if weight is None else grad_weight, grad_bias if ctx.has_bias else None, None


forward.register_autograd(_differentiate, setup_context=_save)
