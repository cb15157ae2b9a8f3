"""A MedNeXt block on CUDA in two kernels: the depthwise convolution with statistics, and all that follows it.

What the second kernel does not take, which is float32 and more than 128 channels, goes through matrix products of
PyTorch: there they are limited by arithmetic, and tuned.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mednext_edge.ops import cuda_library
from mednext_edge.ops import depthwise3d_cuda as depthwise
from mednext_edge.ops.cuda_library import FeedForward
from mednext_edge.ops.feed_forward import feed_forward

CHANNELS = (32, 64, 128)
"""That the second kernel takes and gives; it gives half as many, as many or twice as many as it takes."""
HIDDEN_STEP = 32
ALIGNMENT = 16  # bytes, of every image and weight that it reads or writes


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
    """Output, convolution, and its mean and moment, as `ops.block3d` says; the images channels-last."""
    a, mean, moment = depthwise.convolution_stats(x, weight, bias, stride, transposed=transposed)
    second = second_kernel if takes(a, w1, w2) else feed_forward
    return second(a, mean, moment, gamma, beta, eps, w1, b1, w2, b2, residual, front), a, mean, moment


def takes(a: Tensor, w1: Tensor, w2: Tensor) -> bool:
    """Whether the second kernel computes these layers."""
    channels, hidden, out = a.shape[1], w1.shape[0], w2.shape[0]
    return (
        a.dtype in (torch.float16, torch.bfloat16)
        and channels in CHANNELS
        and out in CHANNELS
        and out in (channels // 2, channels, 2 * channels)
        and hidden % HIDDEN_STEP == 0
    )


def second_kernel(
    a: Tensor,
    mean: Tensor,
    moment: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    residual: Tensor | None,
    front: int,
) -> Tensor:
    """As `ops.feed_forward.feed_forward`, in one kernel."""
    n, channels, *size = a.shape
    a = _aligned(depthwise.channels_last(a))
    shape = n, len(w2), *(s + front for s in size)
    y = torch.empty(shape, dtype=a.dtype, device=a.device, memory_format=torch.channels_last_3d)
    if residual is not None:
        residual = _aligned(depthwise.channels_last(residual))
    for axis in (2, 3, 4) if front else ():
        plane = y.select(axis, 0)
        plane.zero_() if residual is None else plane.copy_(residual.select(axis, 0))
    inside = (slice(None), slice(None), *(slice(front, None),) * 3)
    target = y[inside]
    stride_n, _, *strides = target.stride()
    layer = FeedForward(n, *size, channels, len(w1), len(w2), depthwise.DTYPES[a.dtype], eps, stride_n, *strides)
    gamma, beta, b1, b2 = (depthwise.float_vector(t) for t in (gamma, beta, b1, b2))
    w1, w2 = (_aligned(w.flatten(1).contiguous()) for w in (w1, w2))
    tensors = (a, mean, moment, gamma, beta, w1, b1, w2, b2, None if residual is None else residual[inside], target)
    depthwise.enqueue(partial(cuda_library.library().feed_forward, layer), *tensors)
    return y


def _aligned(x: Tensor) -> Tensor:
    return x if x.data_ptr() % ALIGNMENT == 0 else x.clone()
