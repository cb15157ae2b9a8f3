"""A MedNeXt block on CUDA: the depthwise convolution with statistics by our kernel, what follows by matrix products."""

from __future__ import annotations

from torch import Tensor

from mednext_edge.ops import depthwise3d_cuda as depthwise
from mednext_edge.ops.feed_forward import feed_forward


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
    return feed_forward(a, mean, moment, gamma, beta, eps, w1, b1, w2, b2, residual, front), a, mean, moment
