"""Depthwise convolution as operators of PyTorch: our kernels on CUDA devices and CPUs, PyTorch's own elsewhere.

Images are volumes of one plane: each operator takes both, and tells them apart by the number of axes.

Three operators, each of which is a derivative of the one sum  s(x, w, y) = <conv(x, w), y>  and so closed
under differentiation:

    mednext::depthwise3d           ds/dy   the convolution, stride 1 or 2, padding k // 2
    mednext::depthwise3d_adjoint   ds/dx   its input gradient, and the transposed convolution of the decoder
    mednext::depthwise3d_weight    ds/dw   its weight gradient

The twins below are PyTorch's own convolutions. They run where our kernels do not take device, type (float64 anywhere)
or kernel size, on CPUs in 2-D, and on CUDA where the library is not there; and they are what a graph is decomposed to:
an exported ONNX graph holds standard Conv and ConvTranspose. In half precision on CPUs the convolution is PyTorch's,
its gradients are ours in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight, conv3d_weight

from mednext_edge.errors import UsageError
from mednext_edge.ops import depthwise3d_cpu as cpu
from mednext_edge.ops import depthwise3d_cuda as cuda

STRIDES = (1, 2)
AXES = (4, 5)
"""Of an image and of a volume, with those of samples and channels."""


def depthwise3d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, transposed: bool = False
) -> Tensor:
    """Depthwise convolution with padding k // 2, or its transposed form.

    The output lies in memory as the input does, channels-last or contiguous; our kernels compute channels-last,
    so that a contiguous input costs a copy before and one after. Under autocast all tensors are cast.

    Args:
        x: [N, C, *n], n of two or three axes; float32, float16 or bfloat16, and float64 through PyTorch's own kernels.
        weight: [C, 1, *k], k odd and the same along all axes, of the same type.
        bias: [C] or None.
        stride: 1 or 2.
        transposed: the transposed convolution, without output padding.

    Returns:
        [N, C, *m]; m = (n - 1) // stride + 1, or stride * (n - 1) + 1 when transposed.

    Raises:
        UsageError: shapes, types or the stride are not of this kind.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    check_sizes(x, weight, stride)
    _check_types(x, weight, bias)
    if transposed:
        return adjoint(x, weight, bias, [stride * (n - 1) + 1 for n in x.shape[2:]], stride)  # type: ignore[no-any-return]
    return convolution(x, weight, bias, stride)  # type: ignore[no-any-return]


def check_sizes(x: Tensor, weight: Tensor, stride: int) -> None:
    """Raises UsageError when input, weight and stride are not those of a depthwise convolution of images or volumes."""
    if stride not in STRIDES:
        raise UsageError(f"found stride {stride}; a depthwise convolution here has stride 1 or 2")
    k = weight.shape[-1] if weight.dim() in AXES else 0
    if x.dim() not in AXES or weight.shape != (x.shape[1], 1, *(k,) * (x.dim() - 2)) or k % 2 == 0:
        raise UsageError(
            f"found an input {tuple(x.shape)} and a weight {tuple(weight.shape)}; "
            "expected [N, C, D, H, W] and [C, 1, k, k, k], or [N, C, H, W] and [C, 1, k, k], with an odd k"
        )


def _check_types(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    c = x.shape[1]
    if bias is not None and bias.shape != (c,):
        raise UsageError(f"found a bias {tuple(bias.shape)}; expected ({c},), one value a channel")
    types = {t.dtype for t in (x, weight, bias) if t is not None}
    if len(types) > 1 or not x.is_floating_point():
        found = ", ".join(sorted(map(str, types)))
        raise UsageError(f"found {found}; expected input, weight and bias of one floating-point type")


def layout(x: Tensor) -> torch.memory_format:
    """How the result of an operator lies in memory: as its first argument does."""
    if x.is_contiguous() or x.stride(1) != 1:
        return torch.contiguous_format
    return cuda.CHANNELS_LAST[x.dim()]


# The twins, and which results they have to give.


def convolution_twin(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """[N, C, *n], [C, 1, *k], [C] -> [N, C, *m] with m = (n - 1) // stride + 1."""
    convolve = F.conv2d if x.dim() == 4 else F.conv3d
    y = convolve(x, weight, bias, stride, padding=weight.shape[-1] // 2, groups=x.shape[1])
    return y.contiguous(memory_format=layout(x))


def adjoint_twin(y: Tensor, weight: Tensor, bias: Tensor | None, size: Sequence[int], stride: int) -> Tensor:
    """[N, C, *m] -> [N, C, *size]; `size` is one that the convolution takes to m. The bias, [C], is added."""
    excess = [n - (stride * (m - 1) + 1) for n, m in zip(size, y.shape[2:], strict=True)]
    convolve = F.conv_transpose2d if y.dim() == 4 else F.conv_transpose3d
    x = convolve(y, weight, bias, stride, padding=weight.shape[-1] // 2, output_padding=excess, groups=y.shape[1])
    return x.contiguous(memory_format=layout(y))


def weight_twin(x: Tensor, y: Tensor, kernel: int, stride: int) -> Tensor:
    """[N, C, *n], [N, C, *m] -> [C, 1, *k], contiguous."""
    derive = conv2d_weight if x.dim() == 4 else conv3d_weight
    grad: Tensor = derive(  # type: ignore[no-untyped-call]
        x, _weight_shape(x, kernel), y, stride, padding=kernel // 2, groups=x.shape[1]
    )
    return grad.contiguous()


def _weight_shape(x: Tensor, kernel: int) -> tuple[int, ...]:
    return (x.shape[1], 1, *(kernel,) * (x.dim() - 2))


# The operators.


@torch.library.custom_op("mednext::depthwise3d", mutates_args=())
def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    if cuda.takes(x, weight.shape[-1]):
        return cuda.convolution(x, weight, bias, stride).contiguous(memory_format=layout(x))
    if cpu.takes(x, weight.shape[-1]):
        return cpu.convolution(x, weight, bias, stride).contiguous(memory_format=layout(x))
    return convolution_twin(x, weight, bias, stride)


@torch.library.custom_op("mednext::depthwise3d_adjoint", mutates_args=())
def adjoint(y: Tensor, weight: Tensor, bias: Tensor | None, size: Sequence[int], stride: int) -> Tensor:
    if cuda.takes(y, weight.shape[-1]):
        return cuda.adjoint(y, weight, bias, size, stride).contiguous(memory_format=layout(y))
    if cpu.takes(y, weight.shape[-1]):
        return cpu.adjoint(y, weight, bias, size, stride).contiguous(memory_format=layout(y))
    if cpu.takes_widened(y, weight.shape[-1]):
        if stride == 1:
            return convolution_twin(y, weight.flip((2, 3, 4)), bias, 1)
        shift = None if bias is None else bias.float()
        x = cpu.adjoint(y.float(), weight.float(), shift, size, stride).to(y.dtype)
        return x.contiguous(memory_format=layout(y))
    return adjoint_twin(y, weight, bias, size, stride)


@torch.library.custom_op("mednext::depthwise3d_weight", mutates_args=())
def weight_gradient(x: Tensor, y: Tensor, kernel: int, stride: int) -> Tensor:
    if cuda.takes(x, kernel):
        return cuda.weight_gradient(x, y, kernel, stride)
    if cpu.takes(x, kernel):
        return cpu.weight_gradient(x, y, kernel, stride)
    if cpu.takes_widened(x, kernel):
        return cpu.weight_gradient(x.float(), y.float(), kernel, stride).to(x.dtype)
    return weight_twin(x, y, kernel, stride)


@convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    return _empty(x, [(n - 1) // stride + 1 for n in x.shape[2:]])


@adjoint.register_fake
def _(y: Tensor, weight: Tensor, bias: Tensor | None, size: Sequence[int], stride: int) -> Tensor:
    return _empty(y, size)


@weight_gradient.register_fake
def _(x: Tensor, y: Tensor, kernel: int, stride: int) -> Tensor:
    return x.new_empty(_weight_shape(x, kernel))


def _empty(x: Tensor, size: Sequence[int]) -> Tensor:
    return torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=layout(x))


# What an exporter puts in their place; the weight gradient is in no graph that is exported.
register_decomposition(torch.ops.mednext.depthwise3d.default)(convolution_twin)
register_decomposition(torch.ops.mednext.depthwise3d_adjoint.default)(adjoint_twin)


# Derivatives. Each operator is linear in both tensors (and the bias is added), so the others are its derivatives.


def _save_convolution(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.stride = inputs
    ctx.save_for_backward(x, weight)


def _differentiate_convolution(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
    return (
        adjoint(g, weight, None, x.shape[2:], ctx.stride) if wants_x else None,
        weight_gradient(x, g, weight.shape[-1], ctx.stride) if wants_weight else None,
        g.sum((0, *range(2, g.dim()))) if wants_bias else None,
        None,
    )


def _save_adjoint(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, weight, _, _, ctx.stride = inputs
    ctx.save_for_backward(y, weight)


def _differentiate_adjoint(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    y, weight = ctx.saved_tensors
    wants_y, wants_weight, wants_bias, *_ = ctx.needs_input_grad
    return (
        convolution(g, weight, None, ctx.stride) if wants_y else None,
        weight_gradient(g, y, weight.shape[-1], ctx.stride) if wants_weight else None,
        g.sum((0, *range(2, g.dim()))) if wants_bias else None,
        None,
        None,
    )


def _save_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, y, _, ctx.stride = inputs
    ctx.save_for_backward(x, y)


def _differentiate_weight(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, y = ctx.saved_tensors
    wants_x, wants_y, *_ = ctx.needs_input_grad
    return (
        adjoint(y, g, None, x.shape[2:], ctx.stride) if wants_x else None,
        convolution(x, g, None, ctx.stride) if wants_y else None,
        None,
        None,
    )


convolution.register_autograd(_differentiate_convolution, setup_context=_save_convolution)
adjoint.register_autograd(_differentiate_adjoint, setup_context=_save_adjoint)
weight_gradient.register_autograd(_differentiate_weight, setup_context=_save_weight)
