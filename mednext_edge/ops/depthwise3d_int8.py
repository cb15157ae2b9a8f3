"""Depthwise convolution in int8 with a scale for each channel, for inference: ours on CUDA, PyTorch's elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch.nn import functional as F

from mednext_edge.errors import UsageError
from mednext_edge.ops import cuda_library
from mednext_edge.ops import depthwise3d_cuda as cuda
from mednext_edge.ops.depthwise3d import check_sizes, layout

LARGEST_EXACT_KERNEL = 9
"""Sums of 9^3 products of 8-bit numbers stay below 2^24, where float32 holds every integer."""


def depthwise3d_int8(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, *, stride: int = 1
) -> Tensor:
    """round(conv(x, weight) * scale + bias), to the nearest even integer and within -128 .. 127; padding k // 2.

    Zero points are zero. With scales s of input, weights and output, `scale` is s_x * s_w / s_y and `bias` is that of
    the layer over s_y. The output lies in memory as the input does.

    Args:
        x: [N, C, *n] int8, n of two or three axes.
        weight: [C, 1, *k] int8, k odd and the same along all axes.
        scale: [C] float32.
        bias: [C] float32, in units of the output, or None.
        stride: 1 or 2.

    Returns:
        [N, C, *m] int8; m = (n - 1) // stride + 1.

    Raises:
        UsageError: shapes, types or the stride are not of this kind.
    """
    check_sizes(x, weight, stride)
    c = x.shape[1]
    if x.dtype != torch.int8 or weight.dtype != torch.int8:
        raise UsageError(f"found an input in {x.dtype} and a weight in {weight.dtype}; expected torch.int8")
    for name, vector in (("scale", scale), ("bias", bias)):
        if vector is not None and (vector.shape != (c,) or vector.dtype != torch.float32):
            found = f"{tuple(vector.shape)} in {vector.dtype}"
            raise UsageError(f"found a {name} {found}; expected ({c},) in torch.float32, one value a channel")
    return convolution_int8(x, weight, scale, bias, stride)  # type: ignore[no-any-return]


def twin(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """By PyTorch: integer sums in a float type that holds them, then scale and bias in float64."""
    exact = torch.float32 if weight.shape[-1] <= LARGEST_EXACT_KERNEL else torch.float64
    pad = weight.shape[-1] // 2
    convolve = F.conv2d if x.dim() == 4 else F.conv3d
    sums = convolve(x.to(exact), weight.to(exact), None, stride, pad, groups=x.shape[1]).double()
    per_channel = (-1, *(1,) * (x.dim() - 2))
    y = sums * scale.double().view(per_channel)
    if bias is not None:
        y = y + bias.double().view(per_channel)
    return y.round().clamp(-128, 127).to(torch.int8).contiguous(memory_format=layout(x))


def _reaches(x: Tensor, kernel: int) -> bool:
    return kernel <= cuda_library.LARGEST_KERNEL and x.numel() > 0 and cuda.reaches(x.device)


@torch.library.custom_op("mednext::depthwise3d_int8", mutates_args=())
def convolution_int8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    if not _reaches(x, weight.shape[-1]):
        return twin(x, weight, scale, bias, stride)
    return cuda.convolution_int8(x, weight, scale, bias, stride).contiguous(memory_format=layout(x))


@convolution_int8.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    size = [(n - 1) // stride + 1 for n in x.shape[2:]]
    return torch.empty((*x.shape[:2], *size), dtype=torch.int8, device=x.device, memory_format=layout(x))


register_decomposition(torch.ops.mednext.depthwise3d_int8.default)(twin)
