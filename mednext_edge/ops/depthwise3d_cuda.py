"""Depthwise convolution by our CUDA kernels: tensors to addresses, and nothing else.

The kernels take channels-last activations and float32 weights [*k, C]; every other layout is copied into that form
first. Results are channels-last. Tensors have two or three axes beside samples and channels.
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
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""By the number of a tensor's axes."""


def takes(x: Tensor, kernel: int) -> bool:
    """Whether the kernels compute on tensors such as x."""
    return x.dtype in DTYPES and kernel <= cuda_library.LARGEST_KERNEL and x.numel() > 0 and reaches(x.device)


def reaches(device: torch.device) -> bool:
    """Whether there are kernels for a device."""
    return device.type == "cuda" and cuda_library.available()


def specialised(dims: int, kernel: int, stride: int) -> bool:
    """Whether there are kernels for layers of this size; others take a general one, which is right, not quick."""
    return kernel in (3, 5, 7) or (dims, kernel, stride) == (2, 9, 1)


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
    """int8 [N, C, *n], [C, 1, *k] and float32 [C], [C] -> int8 [N, C, *m], channels-last."""
    x = channels_last(x)
    layer = _layer(x, x.shape[2:], weight.shape[-1], stride, path=path)
    y = _output(x, layer)
    order = weight.squeeze(1).movedim(0, -1).contiguous()
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
    x = _empty(y, size)
    if stride == 2 and all(n == 2 * m - 1 for n, m in zip(size, y.shape[2:], strict=True)):
        layer = _layer(y, y.shape[2:], kernel, stride, transposed=True)
        _call("forward", layer, y, taps(weight), float_vector(bias), x)
        return x
    _call("grad_input", _layer(y, size, kernel, stride, path=path), y, taps(weight), x)
    return x if bias is None else x.add_(bias.view(-1, *(1,) * len(size)))


def weight_gradient(x: Tensor, y: Tensor, kernel: int, stride: int) -> Tensor:
    """[N, C, *n], [N, C, *m] -> [C, 1, *k], contiguous."""
    x, y = channels_last(x), channels_last(y)
    layer = _layer(x, x.shape[2:], kernel, stride)
    c, size = x.shape[1], (kernel,) * (x.dim() - 2)
    grad = torch.empty((*size, c), dtype=torch.float32, device=x.device)
    _call("grad_weight", layer, x, y, grad, workspace=Pass.GRAD_WEIGHT)
    result = torch.empty((c, 1, *size), dtype=x.dtype, device=x.device)
    return result.copy_(grad.movedim(-1, 0).unsqueeze(1))


def taps(weight: Tensor) -> Tensor:
    """[C, 1, *k] -> [*k, C] float32, contiguous."""
    given = weight.squeeze(1).movedim(0, -1)
    # Type and order in one copy; deep in the network a second one would take as long as the convolution.
    return torch.empty(given.shape, dtype=torch.float32, device=weight.device).copy_(given)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=CHANNELS_LAST[x.dim()])


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
    depth = (1,) * (3 - len(size))  # an image is a volume of one plane
    return Layer(x.shape[0], *depth, *size, x.shape[1], len(size), kernel, stride, transposed, _TYPES[x.dtype], path)


def _output(x: Tensor, layer: Layer) -> Tensor:
    size = [2 * n - 1 if layer.transposed else (n - 1) // layer.stride + 1 for n in x.shape[2:]]
    return _empty(x, size)


def _empty(x: Tensor, size: Sequence[int]) -> Tensor:
    """[N, C, *size] of x, channels-last."""
    shape = (*x.shape[:2], *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=CHANNELS_LAST[x.dim()])


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
