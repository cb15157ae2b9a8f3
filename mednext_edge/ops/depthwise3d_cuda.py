"""Depthwise 3-D convolution by our CUDA kernels: tensors to addresses, and nothing else.

The kernels take channels-last activations and float32 weights [k, k, k, C]; every other layout is copied into
that form first. Results are channels-last.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mednext_edge.errors import UsageError
from mednext_edge.ops import cuda_library
from mednext_edge.ops.cuda_library import ComputePath, DType, Layer, Pass

DTYPES = {torch.float32: DType.F32, torch.float16: DType.F16, torch.bfloat16: DType.BF16}
_TYPES = DTYPES | {torch.int8: DType.I8}


def takes(x: Tensor, kernel: int) -> bool:
    """Whether the kernels compute on tensors such as x."""
    return x.dtype in DTYPES and kernel <= cuda_library.LARGEST_KERNEL and x.numel() > 0 and reaches(x.device)


def reaches(device: torch.device) -> bool:
    """Whether there are kernels for a device."""
    return device.type == "cuda" and cuda_library.available()


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, *, path: ComputePath = ComputePath.AUTO
) -> Tensor:
    """[N, C, *n] -> [N, C, *m], channels-last; the library chooses the path unless one is named."""
    x = channels_last(x)
    layer = _layer(x, x.shape[2:], weight.shape[-1], stride, path=path)
    y = _output(x, layer)
    _call("forward", layer, x, taps(weight), float_vector(bias), y)
    return y


def convolution_int8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    stride: int,
    *,
    path: ComputePath = ComputePath.AUTO,
) -> Tensor:
    """int8 [N, C, *n], [C, 1, k, k, k] and float32 [C], [C] -> int8 [N, C, *m], channels-last."""
    x = channels_last(x)
    layer = _layer(x, x.shape[2:], weight.shape[-1], stride, path=path)
    y = _output(x, layer)
    order = weight.squeeze(1).permute(1, 2, 3, 0).contiguous()
    _call("forward_int8", layer, x, order, float_vector(scale), float_vector(bias), y)
    return y


def convolution_stats(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    *,
    transposed: bool = False,
    path: ComputePath = ComputePath.AUTO,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same or, with stride 2, the transposed convolution; and the statistics that a norm behind it needs.

    Returns:
        The output; its mean over the voxels of each sample and channel, [N, C] float32; the sum of its squared
        distances from that mean, [N, C] float32.
    """
    x = channels_last(x)
    layer = _layer(x, x.shape[2:], weight.shape[-1], stride, transposed=transposed, path=path)
    y = _output(x, layer)
    mean, moment = (torch.empty(x.shape[:2], dtype=torch.float32, device=x.device) for _ in range(2))
    _call("forward_stats", layer, x, taps(weight), float_vector(bias), y, mean, moment, workspace=Pass.FORWARD_STATS)
    return y, mean, moment


def adjoint(
    y: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    size: Sequence[int],
    stride: int,
    *,
    path: ComputePath = ComputePath.AUTO,
) -> Tensor:
    """[N, C, *m] -> [N, C, *size], channels-last; the bias is added."""
    y = channels_last(y)
    kernel = weight.shape[-1]
    x = torch.empty((*y.shape[:2], *size), dtype=y.dtype, device=y.device, memory_format=torch.channels_last_3d)
    if stride == 2 and all(n == 2 * m - 1 for n, m in zip(size, y.shape[2:], strict=True)):
        layer = _layer(y, y.shape[2:], kernel, stride, transposed=True)
        _call("forward", layer, y, taps(weight), float_vector(bias), x)
        return x
    _call("grad_input", _layer(y, size, kernel, stride, path=path), y, taps(weight), x)
    return x if bias is None else x.add_(bias.view(-1, 1, 1, 1))


def weight_gradient(x: Tensor, y: Tensor, kernel: int, stride: int) -> Tensor:
    """[N, C, *n], [N, C, *m] -> [C, 1, k, k, k], contiguous."""
    x, y = channels_last(x), channels_last(y)
    layer = _layer(x, x.shape[2:], kernel, stride)
    grad = torch.empty((kernel, kernel, kernel, x.shape[1]), dtype=torch.float32, device=x.device)
    _call("grad_weight", layer, x, y, grad, workspace=Pass.GRAD_WEIGHT)
    result = torch.empty((x.shape[1], 1, kernel, kernel, kernel), dtype=x.dtype, device=x.device)
    return result.copy_(grad.permute(3, 0, 1, 2).unsqueeze(1))


def taps(weight: Tensor) -> Tensor:
    """[C, 1, k, k, k] -> [k, k, k, C] float32, contiguous."""
    given = weight.squeeze(1).permute(1, 2, 3, 0)
    # Type and order in one copy; deep in the network a second one would take as long as the convolution.
    return torch.empty(given.shape, dtype=torch.float32, device=weight.device).copy_(given)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def float_vector(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float().contiguous()


def _layer(
    x: Tensor,
    size: Sequence[int],
    kernel: int,
    stride: int,
    *,
    transposed: bool = False,
    path: ComputePath = ComputePath.AUTO,
) -> Layer:
    return Layer(x.shape[0], *size, x.shape[1], kernel, stride, transposed, _TYPES[x.dtype], path)


def _output(x: Tensor, layer: Layer) -> Tensor:
    size = [2 * n - 1 if layer.transposed else (n - 1) // layer.stride + 1 for n in x.shape[2:]]
    return torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)


def _call(function: str, layer: Layer, first: Tensor, *others: Tensor | None, workspace: Pass | None = None) -> None:
    library = cuda_library.library()
    size = None if workspace is None else functools.partial(library.workspace_bytes, layer, workspace)
    enqueue(functools.partial(library.call, function, layer), first, *others, workspace=size)


def enqueue(
    call: Callable[..., None], first: Tensor, *others: Tensor | None, workspace: Callable[[], int] | None = None
) -> None:
    """Enqueue a function of the library on the current stream of the tensors' device.

    Args:
        call: takes the tensors' addresses, those of a workspace and its size if there is one, and the stream.
        first, others: its tensors; None becomes a null pointer.
        workspace: gives the bytes that it needs on the current device.

    Raises:
        UsageError: the tensors are on several devices.
    """
    device = first.device
    elsewhere = {str(t.device) for t in others if t is not None and t.device != device}
    if elsewhere:
        raise UsageError(f"found tensors on {device} and {', '.join(sorted(elsewhere))}; put all of them on one device")
    on_gpu = device.type == "cuda"
    with torch.cuda.device(device) if on_gpu else contextlib.nullcontext():
        arguments = [None if t is None else t.data_ptr() for t in (first, *others)]
        if workspace is not None:
            size = workspace()
            scratch = torch.empty(size, dtype=torch.uint8, device=device)
            arguments += [scratch.data_ptr(), size]
        call(*arguments, torch.cuda.current_stream().cuda_stream if on_gpu else None)
