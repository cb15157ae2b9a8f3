"""Depthwise 3-D convolution by our CPU kernels: tensors to addresses, and nothing else.

PyTorch's own kernels for the gradients and for the transposed convolution are ten times slower and more. Ours take
float32, channels-last, and weights [k, k, k, C]; every other layout is copied into that form first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mednext_edge.ops import cpu_library
from mednext_edge.ops.cpu_library import Layer

KERNELS = (3, 5, 7)


def takes(x: Tensor, kernel: int) -> bool:
    """Whether the kernels compute on tensors such as x."""
    return x.dtype == torch.float32 and _fits(x, kernel)


def takes_widened(x: Tensor, kernel: int) -> bool:
    """Whether they do once x is float32. Of PyTorch's kernels for half precision the plain convolution is quicker, but
    weight gradients are at times garbage (2.13, AVX512-BF16, channels-last, seen on volumes of up to 6^3 voxels).
    """
    return x.dtype in (torch.bfloat16, torch.float16) and _fits(x, kernel)


def _fits(x: Tensor, kernel: int) -> bool:
    return x.dim() == 5 and x.device.type == "cpu" and kernel in KERNELS and x.numel() > 0


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """[N, C, *n] -> [N, C, *m], channels-last."""
    x = channels_last(x)
    y = _empty(x, [(n - 1) // stride + 1 for n in x.shape[2:]])
    layer = _layer(x, x.shape[2:], weight.shape[-1], stride)
    cpu_library.call("dwconv3d_forward", layer, x, _taps(weight), _vector(bias), y)
    return y


def adjoint(y: Tensor, weight: Tensor, bias: Tensor | None, size: Sequence[int], stride: int) -> Tensor:
    """[N, C, *m] -> [N, C, *size], channels-last; the bias is added."""
    y = channels_last(y)
    x = _empty(y, size)
    layer = _layer(y, size, weight.shape[-1], stride)
    cpu_library.call("dwconv3d_adjoint", layer, y, _taps(weight), _vector(bias), x)
    return x


def weight_gradient(x: Tensor, y: Tensor, kernel: int, stride: int) -> Tensor:
    """[N, C, *n], [N, C, *m] -> [C, 1, k, k, k], contiguous."""
    x, y = channels_last(x), channels_last(y)
    grad = x.new_empty((kernel, kernel, kernel, x.shape[1]))
    cpu_library.call("dwconv3d_weight", _layer(x, x.shape[2:], kernel, stride), x, y, grad)
    return grad.permute(3, 0, 1, 2).unsqueeze(1).contiguous()


def channels_last(x: Tensor) -> Tensor:
    """The same values with the channels of a voxel side by side, and no gaps.

    Of a tensor with one channel or one voxel PyTorch takes almost any strides for channels-last.
    """
    x = x.contiguous(memory_format=torch.channels_last_3d)
    _, c, d, h, w = x.shape
    dense = (d * h * w * c, 1, h * w * c, w * c, c)
    return x if x.stride() == dense or x.numel() == 0 else x.as_strided(x.shape, dense)


def _taps(weight: Tensor) -> Tensor:
    return weight.squeeze(1).permute(1, 2, 3, 0).contiguous()


def _vector(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()


def _layer(x: Tensor, size: Sequence[int], kernel: int, stride: int) -> Layer:
    return Layer(x.shape[0], *size, x.shape[1], kernel, stride)


def _empty(x: Tensor, size: Sequence[int]) -> Tensor:
    return torch.empty((*x.shape[:2], *size), dtype=x.dtype, memory_format=torch.channels_last_3d)
