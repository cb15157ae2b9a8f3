"""A whole 3-D MedNeXt block as one operator of PyTorch.

    mednext::block3d             y = pad(w2 gelu(w1 norm(conv(x)) + b1) + b2) + residual
    mednext::block3d_gradients   what a gradient of y is for all that follows the convolution

with a depthwise convolution of stride 1 or 2 or its transposed form, a norm that averages every channel of every
sample apart, 1x1x1 expansion and compression, and exact GELU. Saved for the way back are x, the convolution and its
statistics: the normalised and the hidden tensor are computed again, some voxels at a time.

The twin is PyTorch's own operators. It runs on every device but CUDA, on CUDA where the kernel library is not there or
does not take the type (float64), and is what a graph is decomposed to: an exported ONNX graph holds standard
operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch.nn import functional as F

from mednext_edge.errors import UsageError
from mednext_edge.ops import block3d_cuda, depthwise3d_cuda, feed_forward
from mednext_edge.ops.depthwise3d import adjoint, adjoint_twin, convolution, convolution_twin, weight_gradient

STRIDES = (1, 2)
LAYOUT = torch.channels_last_3d
"""How the images that the operators give lie in memory, whatever is given."""


def block3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-5,
    stride: int = 1,
    transposed: bool = False,
    front: int = 0,
) -> Tensor:
    """A MedNeXt block.

    Under autocast images and weights are cast. On CUDA an input that is not channels-last costs a copy.

    Args:
        x: [N, C, *n]; float32, float16 or bfloat16, and float64 through PyTorch's own kernels.
        weight: [C, 1, k, k, k] of the depthwise convolution, k odd, of the same type; padding is k // 2.
        bias: [C] or None; this and the other vectors may be of any floating-point type.
        gamma, beta: [C] or None, scale and shift of the norm.
        w1: [hidden, C, 1, 1, 1], the expansion, of the type of x.
        b1: [hidden] or None.
        w2: [out, hidden, 1, 1, 1], the compression, of the type of x.
        b2: [out] or None.
        residual: [N, out, *(m + front)] or None, of the type of x.
        eps: is added to the variance.
        stride: 1 or 2.
        transposed: the transposed convolution of stride 2, without output padding.
        front: zeros that the path beside the residual gets in front of every axis, 0 or 1.

    Returns:
        [N, out, *(m + front)], channels-last; m = (n - 1) // stride + 1, or 2 * n - 1 when transposed.

    Raises:
        UsageError: shapes, types or numbers are not of this kind.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        x, weight, w1, w2 = (t.to(dtype) for t in (x, weight, w1, w2))
        residual = None if residual is None else residual.to(dtype)
    _check(x, weight, (bias, gamma, beta), w1, b1, w2, b2, residual, stride, transposed, front)
    y, *_ = block(x, weight, bias, gamma, beta, eps, w1, b1, w2, b2, residual, stride, transposed, front)
    return y  # type: ignore[no-any-return]


def _check(
    x: Tensor,
    weight: Tensor,
    vectors: tuple[Tensor | None, ...],
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    residual: Tensor | None,
    stride: int,
    transposed: bool,
    front: int,
) -> None:
    if stride not in STRIDES or (transposed and stride != 2) or front not in (0, 1):
        raise UsageError(
            f"found stride {stride}{', transposed' if transposed else ''} and {front} zeros in front; "
            "a block has stride 1 or 2, or 2 when transposed, and 0 or 1 zeros in front"
        )
    c, k = (x.shape[1], weight.shape[-1]) if x.dim() == weight.dim() == 5 else (0, 0)
    hidden, out = len(w1) if w1.dim() else 0, len(w2) if w2.dim() else 0
    if k % 2 == 0 or weight.shape != (c, 1, k, k, k):
        raise UsageError(
            f"found an input {tuple(x.shape)} and a weight {tuple(weight.shape)}; "
            "expected [N, C, D, H, W] and [C, 1, k, k, k] with an odd k"
        )
    if w1.shape != (hidden, c, 1, 1, 1) or w2.shape != (out, hidden, 1, 1, 1):
        raise UsageError(
            f"found {tuple(w1.shape)} and {tuple(w2.shape)} to expand and compress {c} channels; "
            f"expected [hidden, {c}, 1, 1, 1] and [out, hidden, 1, 1, 1]"
        )
    named = [(c, t) for t in vectors] + [(hidden, b1), (out, b2)]
    if wrong := [(tuple(t.shape), n) for n, t in named if t is not None and t.shape != (n,)]:
        raise UsageError(f"found a bias, scale or shift {wrong[0][0]}; expected ({wrong[0][1]},), one value a channel")
    size = _size(x, stride, transposed)
    expected = (x.shape[0], out, *(n + front for n in size))
    if residual is not None and residual.shape != expected:
        raise UsageError(f"found a residual {tuple(residual.shape)}; expected {expected}, the shape of the output")
    types = {t.dtype for t in (x, weight, w1, w2, residual) if t is not None}
    if len(types) > 1 or not x.is_floating_point():
        found = ", ".join(sorted(map(str, types)))
        raise UsageError(f"found {found}; expected input, weights and residual of one floating-point type")


def block_twin(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    residual: Tensor | None,
    stride: int,
    transposed: bool,
    front: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, convolution, and its mean and moment; the norm and the statistics in no less than float32."""
    bias, b1, b2 = (None if t is None else t.to(x.dtype) for t in (bias, b1, b2))
    if transposed:
        a = adjoint_twin(x, weight, bias, _size(x, stride, transposed), stride)
    else:
        a = convolution_twin(x, weight, bias, stride)
    wide = a.to(_wide(a.dtype))
    mean = wide.mean((2, 3, 4))
    moment = (wide - mean[:, :, None, None, None]).square().sum((2, 3, 4))
    gamma, beta = (None if t is None else t.to(wide.dtype) for t in (gamma, beta))
    # Not torch.nn.functional's, which refuses a single voxel: there the norm gives its shift.
    normal = torch.instance_norm(wide, gamma, beta, None, None, True, 0.0, eps, False).to(x.dtype)
    y = F.conv3d(F.gelu(F.conv3d(normal, w1, b1)), w2, b2)
    if front:
        y = F.pad(y, (front, 0) * 3)
    if residual is not None:
        y = y + residual
    return y.contiguous(memory_format=LAYOUT), a.contiguous(memory_format=LAYOUT), mean, moment


@torch.library.custom_op("mednext::block3d", mutates_args=())
def block(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    residual: Tensor | None,
    stride: int,
    transposed: bool,
    front: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if x.shape[0] == 0:  # torch's instance norm fails
        return _outputs(x, w2, stride, transposed, front)
    compute = block3d_cuda.block if depthwise3d_cuda.takes(x, weight.shape[-1]) else block_twin
    with torch.autocast(x.device.type, enabled=False):
        return compute(x, weight, bias, gamma, beta, eps, w1, b1, w2, b2, residual, stride, transposed, front)


@block.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    residual: Tensor | None,
    stride: int,
    transposed: bool,
    front: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(x, w2, stride, transposed, front)


register_decomposition(torch.ops.mednext.block3d.default)(block_twin)


@torch.library.custom_op("mednext::block3d_gradients", mutates_args=())
def block_gradients(
    g: Tensor,
    a: Tensor,
    mean: Tensor,
    moment: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    front: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(g.device.type, enabled=False):
        da, *others = feed_forward.gradients(g, a, mean, moment, gamma, beta, eps, w1, b1, w2, front)
    return da.contiguous(memory_format=LAYOUT), *others  # type: ignore[return-value]


@block_gradients.register_fake
def _(
    g: Tensor,
    a: Tensor,
    mean: Tensor,
    moment: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    front: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dgamma, dbeta, db1, db2 = (mean.new_empty(t.shape[axis]) for t, axis in ((a, 1), (a, 1), (w1, 0), (w2, 0)))
    dw1, dw2 = (torch.empty(w.shape, dtype=w.dtype, device=w.device) for w in (w1, w2))
    return _empty(a, a.shape[1], a.shape[2:]), dgamma, dbeta, dw1, db1, dw2, db2


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, gamma, beta, ctx.eps, w1, b1, w2, _, _, ctx.stride, ctx.transposed, ctx.front = inputs
    _, a, mean, moment = output
    ctx.mark_non_differentiable(a, mean, moment)
    ctx.save_for_backward(x, weight, gamma, beta, w1, b1, w2, a, mean, moment)


def _differentiate(ctx: Any, g: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, gamma, beta, w1, b1, w2, a, mean, moment = ctx.saved_tensors
    (wants_x, wants_weight, wants_bias, *wants), wants_residual = ctx.needs_input_grad[:10], ctx.needs_input_grad[10]
    grads: list[Tensor | None] = [None] * 10
    if any(ctx.needs_input_grad[:10]):
        da, *rest = block_gradients(g, a, mean, moment, gamma, beta, ctx.eps, w1, b1, w2, ctx.front)
        if wants_x and ctx.transposed:
            grads[0] = convolution(da, weight, None, ctx.stride)
        elif wants_x:
            grads[0] = adjoint(da, weight, None, x.shape[2:], ctx.stride)
        if wants_weight:
            wide, narrow = (da, x) if ctx.transposed else (x, da)
            grads[1] = weight_gradient(wide, narrow, weight.shape[-1], ctx.stride)
        if wants_bias:
            grads[2] = da.sum((0, 2, 3, 4))
        rest.insert(2, None)  # eps
        grads[3:] = [t if want else None for t, want in zip(rest, wants, strict=True)]
    return *grads, g if wants_residual else None, None, None, None


block.register_autograd(_differentiate, setup_context=_save)


def _size(x: Tensor, stride: int, transposed: bool) -> list[int]:
    """Of what the depthwise convolution gives."""
    return [2 * n - 1 if transposed else (n - 1) // stride + 1 for n in x.shape[2:]]


def _outputs(x: Tensor, w2: Tensor, stride: int, transposed: bool, front: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `block` gives, not yet computed."""
    size = _size(x, stride, transposed)
    mean, moment = (x.new_empty(x.shape[:2], dtype=_wide(x.dtype)) for _ in range(2))
    return _empty(x, w2.shape[0], [n + front for n in size]), _empty(x, x.shape[1], size), mean, moment


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type of statistics of images in `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def _empty(like: Tensor, channels: int, size: list[int] | torch.Size) -> Tensor:
    shape = like.shape[0], channels, *size
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=LAYOUT)
