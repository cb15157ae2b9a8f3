"""Depthwise convolution in int8: the operator, its twin, and our kernels compiled for the processor."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mednext_edge.errors import MednextEdgeError, UsageError
from mednext_edge.ops import depthwise3d_cuda as cuda
from mednext_edge.ops import depthwise3d_int8 as ops
from mednext_edge.ops.cuda_library import ComputePath, CudaLibrary, DType, Layer
from mednext_edge.ops.depthwise3d_int8 import depthwise3d_int8

SHAPES = ((1, 3, 4, 9, 10), (2, 40, 3, 5, 8), (1, 8, 1, 17, 3), (1, 20, 4, 9, 34), (1, 1, 1, 1, 1), (1, 16, 9, 1, 18))
FLAT_SHAPES = ((1, 3, 9, 10), (2, 40, 5, 8), (1, 8, 17, 3), (19, 20, 9, 34), (1, 1, 1, 1), (3, 16, 1, 18))


def draw(shape: tuple[int, ...], kernel: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, weight, scale and bias: outputs spread over all of int8, some of them beyond."""
    seed = torch.Generator().manual_seed(sum(shape) + kernel)
    x = torch.randint(-128, 128, shape, generator=seed).to(torch.int8)
    weight = torch.randint(-128, 128, (shape[1], 1, *(kernel,) * (len(shape) - 2)), generator=seed).to(torch.int8)
    scale = torch.rand(shape[1], generator=seed).add(0.5) * 70 / (74 * 74 * kernel ** (len(shape) / 2 - 1))
    return (
        x.contiguous(memory_format=cuda.CHANNELS_LAST[x.dim()]),
        weight,
        scale,
        torch.randn(shape[1], generator=seed) * 9,
    )


def exact(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """Before rounding, in float64."""
    convolve, each = (F.conv2d, (-1, 1, 1)) if x.dim() == 4 else (F.conv3d, (-1, 1, 1, 1))
    sums = convolve(x.double(), weight.double(), None, stride, weight.shape[-1] // 2, groups=x.shape[1])
    return sums * scale.double().view(each) + (0 if bias is None else bias.double().view(each))


def check(found: Tensor, value: Tensor) -> None:
    """The nearest integer; either of two where a float cannot tell which is nearer."""
    assert found.dtype == torch.int8 and found.shape == value.shape
    kept = value.clamp(-128, 127)
    assert (found.double() - kept).abs().max() <= 0.5 + 1e-4
    clear = ((kept - kept.floor()) - 0.5).abs() > 1e-4
    assert torch.equal(found[clear].double(), kept.round()[clear])


@pytest.mark.parametrize("shape", (*SHAPES, *FLAT_SHAPES), ids=str)
@pytest.mark.parametrize("kernel", (3, 5, 7))
def test_tensor_cores(kernels: CudaLibrary, kernel: int, shape: tuple[int, ...]) -> None:
    x, weight, scale, bias = draw(shape, kernel)
    for given in (bias, None):
        y = cuda.convolution_int8(x, weight, scale, given, 1, path=ComputePath.TENSOR)
        check(y, exact(x, weight, scale, given))
    assert torch.equal(cuda.convolution_int8(x, weight, scale, None, 1), y)


@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize("kernel", (1, 3, 5, 9))
@pytest.mark.parametrize("shape", ((2, 5, 4, 5, 6), (3, 5, 5, 6)), ids=str)
def test_every_other_layer(kernels: CudaLibrary, shape: tuple[int, ...], kernel: int, stride: int) -> None:
    x, weight, scale, bias = draw(shape, kernel)
    y = cuda.convolution_int8(x, weight, scale, bias, stride, path=ComputePath.FMA)
    check(y, exact(x, weight, scale, bias, stride))


def test_largest_sums(kernels: CudaLibrary) -> None:
    """All inputs and weights at their ends: 343 * 128 * 128 in the middle."""
    x = torch.full((1, 16, 7, 8, 9), -128, dtype=torch.int8).contiguous(memory_format=torch.channels_last_3d)
    weight = torch.full((16, 1, 7, 7, 7), -128, dtype=torch.int8)
    scale = torch.full((16,), 100 / (343 * 128.0 * 128.0))
    y = depthwise3d_int8(x, weight, scale)
    check(y, exact(x, weight, scale, None))
    assert y.max() == 100


def test_beyond_the_type(kernels: CudaLibrary) -> None:
    x, weight, scale, bias = draw((1, 16, 3, 4, 5), 3)
    y = depthwise3d_int8(x, weight, scale * 1e6, bias)
    assert set(y.unique().tolist()) <= {-128, 127} | set(range(-128, 128)) and y.min() == -128 and y.max() == 127
    check(y, exact(x, weight, scale * 1e6, bias))


def test_memory_off_its_boundaries(kernels: CudaLibrary) -> None:
    x, weight, scale, bias = draw((1, 16, 3, 9, 10), 5)
    expected = depthwise3d_int8(x, weight, scale, bias)
    room = torch.zeros(x.numel() + 16, dtype=torch.int8)
    for shift in (1, 4):
        moved = room[shift : shift + x.numel()].view(1, 3, 9, 10, 16).permute(0, 4, 1, 2, 3)
        moved.copy_(x)
        assert moved.data_ptr() % 16 != x.data_ptr() % 16
        assert torch.equal(depthwise3d_int8(moved, weight, scale, bias), expected)


@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((2, 3, 4, 5, 6), torch.contiguous_format),
        ((2, 3, 4, 5, 6), torch.channels_last_3d),
        ((2, 3, 5, 6), torch.contiguous_format),
        ((2, 3, 5, 6), torch.channels_last),
    ],
)
def test_the_twin_computes_the_same_and_keeps_the_layout(
    shape: tuple[int, ...], stride: int, layout: torch.memory_format
) -> None:
    x, weight, scale, bias = draw(shape, 3)
    x = x.contiguous(memory_format=layout)
    y = depthwise3d_int8(x, weight, scale, bias, stride=stride)
    assert y.is_contiguous(memory_format=layout)
    check(y, exact(x, weight, scale, bias, stride))


@pytest.mark.parametrize("shape", ((1, 3, 3, 4, 5), (1, 3, 4, 5)))
def test_the_operator_keeps_its_promises(shape: tuple[int, ...]) -> None:
    x, weight, scale, bias = draw(shape, 3)
    torch.library.opcheck(
        ops.convolution_int8, (x, weight, scale, bias, 1), test_utils=("test_schema", "test_faketensor")
    )


def test_what_the_library_refuses(host_library: CudaLibrary) -> None:
    function = host_library._functions["forward_int8"]
    memory = torch.full((64,), torch.nan)
    good = [memory.data_ptr()] * 5

    def code(pointers: list[int | None], **change: int) -> int:
        sizes = {"n": 1, "d": 2, "h": 2, "w": 2, "c": 4, "dims": 3, "kernel": 3, "stride": 1, "dtype": DType.I8}
        return int(function(ctypes.byref(Layer(**sizes | change)), *pointers, None))

    assert [code(good, **change) for change in ({"dtype": 0}, {"c": 0}, {"kernel": 4}, {"stride": 3}, {"path": 7})] == [
        *(-5, -2, -3, -4, -9)
    ]
    for missing in (0, 1, 2, 4):
        assert code([*good[:missing], None, *good[missing + 1 :]]) == -1
    assert code([*good[:2], memory.data_ptr() + 2, *good[3:]]) == -1
    assert memory.isnan().all()


def test_what_is_refused(kernels: CudaLibrary) -> None:
    x, weight, scale, bias = draw((1, 3, 3, 4, 5), 3)
    for arguments, words in (
        ((x.float(), weight, scale), "an input in torch.float32"),
        ((x, weight, scale[:2]), r"a scale \(2,\) in torch.float32; expected \(3,\)"),
        ((x, weight, scale, bias.double()), "a bias .* in torch.float64"),
        ((x, weight[:, :, :2], scale), "expected .N, C, D, H, W. and .C, 1, k, k, k."),
    ):
        with pytest.raises(UsageError, match=words):
            depthwise3d_int8(*arguments)
    with pytest.raises(UsageError, match="stride 3"):
        depthwise3d_int8(x, weight, scale, stride=3)
    with pytest.raises(MednextEdgeError, match=r"code -9: .*stride 2, I8, path TENSOR"):
        cuda.convolution_int8(x, weight, scale, None, 2, path=ComputePath.TENSOR)
