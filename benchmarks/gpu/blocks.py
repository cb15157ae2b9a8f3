"""Whole blocks: which are checked and timed, in our operator, in PyTorch eager and compiled."""

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
from gpu.depthwise import DTYPES, LAYOUTS, LEVELS
from mednext_edge.ops.block3d import block3d


@dataclass(frozen=True)
class Kind:
    """How a block's convolution goes, how many channels come out, and how many zeros stand in front."""

    stride: int = 1
    transposed: bool = False
    widens: float = 1
    front: int = 0

    def inside(self, n: int) -> int:
        """Of what the convolution gives."""
        return 2 * n - 1 if self.transposed else (n - 1) // self.stride + 1


KINDS = {"block": Kind(), "down block": Kind(2, widens=2), "up block": Kind(2, True, 0.5, 1)}


@dataclass(frozen=True)
class Case:
    """A block, the size of its input, and whether its gradients are meant.

    The inputs are x, the weight of the convolution, scale and shift of the norm, weights and biases of expansion and
    compression, the residual, and for gradients that of the output. The convolution has no bias: the norm cancels it.
    """

    kind: str
    batch: int
    channels: int
    size: tuple[int, int, int]
    kernel: int
    ratio: int
    dtype: torch.dtype
    gradients: bool = False

    @property
    def out(self) -> int:
        return int(self.channels * KINDS[self.kind].widens)

    def shapes(self) -> list[tuple[int, ...]]:
        kind, hidden = KINDS[self.kind], self.ratio * self.channels
        y = (self.batch, self.out, *(kind.inside(n) + kind.front for n in self.size))
        return [
            (self.batch, self.channels, *self.size),
            (self.channels, 1, *(self.kernel,) * 3),
            (self.channels,),
            (self.channels,),
            (hidden, self.channels, 1, 1, 1),
            (hidden,),
            (self.out, hidden, 1, 1, 1),
            (self.out,),
            y,
            *[y] * self.gradients,
        ]

    def draw(self, device: torch.device, last: bool = True) -> tuple[Tensor, ...]:
        layout = torch.channels_last_3d if last else torch.contiguous_format
        drawn = []
        for shape in self.shapes():
            tensor = torch.randn(shape, device=device, dtype=self.dtype)
            if len(shape) == 5 and shape[2:] in ((1, 1, 1), (self.kernel,) * 3):
                tensor = tensor / math.prod(shape[1:]) ** 0.5  # a weight
            drawn.append(tensor.contiguous(memory_format=layout) if tensor.dim() == 5 else tensor)
        return tuple(drawn)

    def ours(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._passes(self.our_forward, inputs)

    def torchs(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._passes(self.torch_forward, inputs)

    def terms(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """No larger than the results: nothing is allowed for sums that cancel."""
        return self.torchs(*inputs)

    def _passes(self, forward: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not self.gradients:
            return (forward(*inputs),)
        *given, slope = inputs
        leaves = [t.detach().requires_grad_() for t in given]
        with torch.enable_grad():
            return torch.autograd.grad(forward(*leaves), leaves, slope)

    def our_forward(self, x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, *layers: Tensor) -> Tensor:
        kind = KINDS[self.kind]
        return block3d(
            x, weight, None, gamma, beta, *layers, stride=kind.stride, transposed=kind.transposed, front=kind.front
        )

    def torch_forward(
        self,
        x: Tensor,
        weight: Tensor,
        gamma: Tensor,
        beta: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        residual: Tensor,
    ) -> Tensor:
        kind = KINDS[self.kind]
        convolve = F.conv_transpose3d if kind.transposed else F.conv3d
        a = convolve(x, weight, None, stride=kind.stride, padding=self.kernel // 2, groups=self.channels)
        y = F.conv3d(F.gelu(F.conv3d(F.group_norm(a, self.channels, gamma, beta), w1, b1)), w2, b2)
        return residual + (F.pad(y, (kind.front, 0) * 3) if kind.front else y)

    @property
    def elements(self) -> int:
        """Of the tensors that two kernels read or write: x and convolution, convolution, residual and output."""
        x, *_, y = self.shapes()
        inside = self.batch * self.channels * math.prod(KINDS[self.kind].inside(n) for n in self.size)
        return math.prod(x) + 2 * inside + 2 * math.prod(y)

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        what = f"{self.kind}{', gradients' if self.gradients else ''} k{self.kernel} r{self.ratio}"
        return f"{what} {str(self.dtype)[6:]} ({self.batch}, {self.channels}, {size})"


CHECKED = [
    Case(kind, batch, channels, size, kernel, ratio, dtype, gradients)
    for kind, dtype, gradients in itertools.product(KINDS, DTYPES, (False, True))
    for batch, channels, size, kernel, ratio in (
        (1, 32, (16, 17, 18), 3, 2),
        (2, 64, (9, 10, 33), 5, 3),
        (1, 128, (8, 9, 20), 3, 4),
        (1, 128, (12, 12, 12), 7, 8),
        (2, 256, (8, 8, 8), 3, 4),
        (1, 20, (12, 13, 14), 3, 3),
    )
]
"""Every width that the second kernel takes and others, more voxels than it takes at a time and no multiple of that."""
RATIOS = (2, 3, 4, 4, 4)
"""Of expansion, level by level in MedNeXt-B."""
TIMED = [
    *(
        Case("block", 1, channels, (side,) * 3, kernel, ratio, torch.float16)
        for ((channels, side), ratio), kernel in itertools.product(zip(LEVELS, RATIOS, strict=True), (3, 5))
    ),
    *(
        Case(kind, 1, channels, (side,) * 3, kernel, 3, torch.float16)
        for (kind, (channels, side)), kernel in itertools.product(
            (("down block", LEVELS[0]), ("up block", LEVELS[1])), (3, 5)
        )
    ),
]


def compiled(case: Case) -> Callable[..., Tensor]:
    """PyTorch's form of a case through torch.compile; compiled anew for every case."""
    torch._dynamo.reset()
    return torch.compile(case.torch_forward, dynamic=False)


def measure(case: Case, device: torch.device, cache: int, bandwidth: float) -> dict[str, Any]:
    """One row of the result: forward."""
    moved = case.elements * case.dtype.itemsize
    copies = timing.copies_beyond(cache, moved)
    inputs = {name: [case.draw(device, last) for _ in range(copies)] for name, last in LAYOUTS.items()}
    last, contiguous, faster = inputs["channels-last"], inputs["contiguous"], compiled(case)
    calls: dict[str, Callable[[int], object]] = {
        "ours": lambda i: case.our_forward(*last[i % copies]),
        "torch contiguous": lambda i: case.torch_forward(*contiguous[i % copies]),
        "torch channels-last": lambda i: case.torch_forward(*last[i % copies]),
        "torch compiled": lambda i: faster(*last[i % copies]),
    }
    ms = timing.in_turns({name: timing.graph(call, device) for name, call in calls.items()})
    eager = min(ms["torch contiguous"], ms["torch channels-last"])
    return {
        **asdict(case),
        "dtype": str(case.dtype)[6:],
        "microseconds": {name: round(1e3 * time, 2) for name, time in ms.items()},
        "times_faster_than_eager": round(eager / ms["ours"], 2),
        "times_faster_than_compiled": round(ms["torch compiled"] / ms["ours"], 2),
        "percent_of_copy_bandwidth": round(100 * moved / ms["ours"] / 1e6 / bandwidth, 1),
        "inputs_fit_in_cache": copies * moved < cache,
    }
