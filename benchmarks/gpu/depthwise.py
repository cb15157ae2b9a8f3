"""The depthwise convolutions and their gradients: which layers are checked and timed, by our kernels and PyTorch's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gpu import timing
from mednext_edge.ops import depthwise3d as ops
from mednext_edge.ops import depthwise3d_cuda
from mednext_edge.ops.cuda_library import ComputePath

LAYOUTS = {"contiguous": False, "channels-last": True}
"""Name -> whether the channels lie side by side."""

Call = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
ForcedCall = Callable[[Tensor, Tensor, Tensor, ComputePath], tuple[Tensor, ...]]


def torch_forward(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    convolve = F.conv2d if x.dim() == 4 else F.conv3d
    return convolve(x, weight, None, stride, weight.shape[-1] // 2, groups=x.shape[1])


def torch_transposed(x: Tensor, weight: Tensor) -> Tensor:
    convolve = F.conv_transpose2d if x.dim() == 4 else F.conv_transpose3d
    return convolve(x, weight, None, 2, weight.shape[-1] // 2, groups=x.shape[1])


def torch_gradients(x: Tensor, weight: Tensor, y: Tensor, wanted: tuple[bool, bool]) -> tuple[Tensor, ...]:
    """What autograd calls for a convolution."""
    dims = x.dim() - 2
    sizes = [1] * dims, [weight.shape[-1] // 2] * dims, [1] * dims, False, [0] * dims
    grads = torch.ops.aten.convolution_backward(y, x, weight, None, *sizes, x.shape[1], [*wanted, False])
    return tuple(g for g, want in zip(grads, wanted, strict=False) if want)


def torch_statistics(x: Tensor, weight: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """The convolution and what an instance norm behind it takes of it; no less than float32."""
    out = torch_forward(x, weight)
    wide = out if out.dtype == torch.float64 else out.float()
    var, mean = torch.var_mean(wide.flatten(2), 2, correction=0)
    return out, mean, var * wide[0, 0].numel()


@dataclass(frozen=True)
class Operation:
    """One pass, by our kernels and by PyTorch: (input, weight, output or its gradient) -> results.

    `forced` is ours on a path that is named; None where there is one alone.
    """

    ours: Call
    torchs: Call
    forced: ForcedCall | None = None
    stride: int = 1
    transposed: bool = False

    def output(self, n: int) -> int:
        return 2 * n - 1 if self.transposed else (n - 1) // self.stride + 1


OPERATIONS = {
    "forward": Operation(
        lambda x, w, y: (ops.convolution(x, w, None, 1),),
        lambda x, w, y: (torch_forward(x, w),),
        lambda x, w, y, path: (depthwise3d_cuda.convolution(x, w, None, 1, path=path),),
    ),
    "forward with statistics": Operation(
        lambda x, w, y: depthwise3d_cuda.convolution_stats(x, w, None, 1),
        torch_statistics,
        lambda x, w, y, path: depthwise3d_cuda.convolution_stats(x, w, None, 1, path=path),
    ),
    "stride 2": Operation(
        lambda x, w, y: (ops.convolution(x, w, None, 2),),
        lambda x, w, y: (torch_forward(x, w, 2),),
        stride=2,
    ),
    "transposed": Operation(
        lambda x, w, y: (ops.adjoint(x, w, None, y.shape[2:], 2),),
        lambda x, w, y: (torch_transposed(x, w),),
        stride=2,
        transposed=True,
    ),
    "input gradient": Operation(
        lambda x, w, y: (ops.adjoint(y, w, None, x.shape[2:], 1),),
        lambda x, w, y: torch_gradients(x, w, y, (True, False)),
        lambda x, w, y, path: (depthwise3d_cuda.adjoint(y, w, None, x.shape[2:], 1, path=path),),
    ),
    "weight gradient": Operation(
        lambda x, w, y: (ops.weight_gradient(x, y, w.shape[-1], 1),),
        lambda x, w, y: torch_gradients(x, w, y, (False, True)),
    ),
}


@dataclass(frozen=True)
class Case:
    """A layer: name of its operation, the size of its input, in 2-D or 3-D, and on which path ours computes it."""

    operation: str
    batch: int
    channels: int
    size: tuple[int, ...]
    kernel: int
    dtype: torch.dtype
    path: ComputePath = ComputePath.AUTO

    def draw(self, device: torch.device, last: bool = True) -> tuple[Tensor, ...]:
        """Fresh random input, weight, and output gradient, channels-last or contiguous."""
        dims = len(self.size)
        layout = depthwise3d_cuda.CHANNELS_LAST[dims + 2] if last else torch.contiguous_format
        out = [OPERATIONS[self.operation].output(n) for n in self.size]
        x, y = (
            torch.randn((self.batch, self.channels, *size), device=device, dtype=self.dtype).contiguous(
                memory_format=layout
            )
            for size in (self.size, out)
        )
        weight = torch.randn((self.channels, 1, *(self.kernel,) * dims), device=device, dtype=self.dtype)
        return x, weight / self.kernel ** (dims / 2), y

    def ours(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        operation = OPERATIONS[self.operation]
        if self.path == ComputePath.AUTO or operation.forced is None:
            return operation.ours(*inputs)
        x, weight, y = inputs
        return operation.forced(x, weight, y, self.path)

    def torchs(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return OPERATIONS[self.operation].torchs(*inputs)

    def terms(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.torchs(*(t.abs() for t in inputs))

    @property
    def elements(self) -> int:
        """Of the tensors that must be read or written once: what enters and what leaves."""
        output = (OPERATIONS[self.operation].output(n) for n in self.size)
        return self.batch * self.channels * (math.prod(self.size) + math.prod(output))

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        path = "" if self.path == ComputePath.AUTO else f" by {self.path.name}"
        return f"{self.operation} k{self.kernel} {str(self.dtype)[6:]} ({self.batch}, {self.channels}, {size}){path}"


def paths(operation: str, kernel: int, dtype: torch.dtype, dims: int = 3) -> tuple[ComputePath, ...]:
    """Both where there are two, else the one that there is."""
    tensor = (5, 7) if dims == 2 else (3, 5, 7)
    both = OPERATIONS[operation].forced is not None and kernel in tensor and dtype.itemsize == 2
    return (ComputePath.FMA, ComputePath.TENSOR) if both else (ComputePath.AUTO,)


DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CHECKED = [
    Case(name, batch, channels, size, kernel, dtype, path)
    for name, kernel, dtype in itertools.product(OPERATIONS, (3, 5, 7, 9), DTYPES)
    for batch, channels, size in (
        (2, 3, (5, 7, 9)),
        (1, 8, (1, 1, 1)),
        (1, 32, (16, 17, 18)),
        (2, 72, (33, 9, 8)),
        (1, 20, (2, 70, 35)),
        (2, 3, (7, 9)),
        (1, 8, (1, 1)),
        (1, 32, (33, 34)),
        (5, 72, (9, 8)),
        (300, 20, (17, 35)),
    )
    for path in paths(name, kernel, dtype, len(size))
]
LEVELS = ((32, 128), (64, 64), (128, 32), (256, 16), (512, 8))
"""(channels, side) of a 128^3 patch in MedNeXt."""
IMAGES = ((1, 16, 256, 3), (1, 128, 64, 7), (1, 128, 16, 9), (16, 32, 256, 3), (16, 128, 64, 7), (16, 128, 16, 9))
"""(images, channels, side, kernel) in CMUNeXt at 256 x 256; one image alone leaves little to do on deep levels."""
TIMED = [
    Case(name, 1, channels, (side,) * 3, kernel, dtype, path)
    for (channels, side), dtype, kernel, name in itertools.product(
        LEVELS, (torch.float16, torch.float32), (3, 5, 7), OPERATIONS
    )
    for path in paths(name, kernel, dtype)
    if (kernel < 7 or OPERATIONS[name].forced is not None)
    if not (OPERATIONS[name].transposed and side == LEVELS[0][1])  # no layer doubles the full resolution
] + [
    Case(name, batch, channels, (side,) * 2, kernel, dtype, path)
    for (batch, channels, side, kernel), dtype, name in itertools.product(
        (*IMAGES, (16, 64, 128, 5)), (torch.float16, torch.float32), OPERATIONS
    )
    for path in paths(name, kernel, dtype, 2)
    if OPERATIONS[name].stride == 1 or kernel == 5  # CMUNeXt has none; one size for the others
]


def measure(case: Case, device: torch.device, cache: int, bandwidth: float) -> dict[str, Any]:
    """One row of the result."""
    moved = case.elements * case.dtype.itemsize
    copies = timing.copies_beyond(cache, moved)
    inputs = {name: [case.draw(device, last) for _ in range(copies)] for name, last in LAYOUTS.items()}
    calls: dict[str, Callable[[int], object]] = {
        "ours": lambda i: case.ours(*inputs["channels-last"][i % copies]),
        **{
            f"torch {name}": lambda i, given=given: case.torchs(*given[i % copies])  # type: ignore[misc]
            for name, given in inputs.items()
        },
    }
    ms = timing.in_turns({name: timing.graph(call, device) for name, call in calls.items()})
    best = min(time for name, time in ms.items() if name != "ours")
    return {
        **asdict(case),
        "dtype": str(case.dtype)[6:],
        "path": case.path.name,
        "microseconds": {name: round(1e3 * time, 2) for name, time in ms.items()},
        "times_faster_than_best_torch": round(best / ms["ours"], 2),
        "percent_of_copy_bandwidth": round(100 * moved / ms["ours"] / 1e6 / bandwidth, 1),
        "inputs_fit_in_cache": copies * moved < cache,
    }
