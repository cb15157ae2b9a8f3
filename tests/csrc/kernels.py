"""Calls of the kernel library on tensors in main memory, with everything around them poisoned."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mednext_edge.ops.cuda_library import ComputePath, CudaLibrary, DType, Layer, Pass

GUARD = 64
"""Elements around every tensor: not-a-number, so that a read of them shows in the result and a write shows here."""
TYPES = {torch.float32: DType.F32, torch.float16: DType.F16, torch.bfloat16: DType.BF16}
DTYPES = tuple(TYPES)


class Guarded:
    """A tensor with poison before and after it, and in it until it is written.

    Args:
        shape: its shape.
        dtype: its type.
        shift: elements by which it starts off a 16-byte boundary.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, shift: int = 0) -> None:
        size = torch.Size(shape).numel()
        self._all = torch.full((size + 2 * GUARD + shift,), torch.nan, dtype=dtype)
        self._begin, self._end = GUARD + shift, GUARD + shift + size
        self.tensor = self._all[self._begin : self._end].view(shape)

    @classmethod
    def of(cls, values: Tensor, dtype: torch.dtype, shift: int = 0) -> Guarded:
        guarded = cls(tuple(values.shape), dtype, shift)
        guarded.tensor.copy_(values)
        return guarded

    @property
    def address(self) -> int:
        return self.tensor.data_ptr()

    def intact(self) -> bool:
        """Whether nothing was written beside the tensor."""
        return bool(self._all[: self._begin].isnan().all() and self._all[self._end :].isnan().all())


class Case:
    """A layer with random input, weights, bias and output gradient, and its passes through a library.

    Args:
        shape: (n, c, d, h, w) of the layer's input.
        kernel: taps along an axis.
        stride: 1 or 2.
        transposed: a transposed convolution.
        dtype: type of the activations.
        shift: elements by which the activations lie off a 16-byte boundary.
        mean: mean of the input.
        path: how it is computed; on tensor cores the weights are of the type of the activations.
        dims: 3, or 2 for a kernel that reaches over no more than h and w.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int, int],
        kernel: int,
        stride: int = 1,
        transposed: bool = False,
        dtype: torch.dtype = torch.float32,
        shift: int = 0,
        mean: float = 0.0,
        path: ComputePath = ComputePath.AUTO,
        dims: int = 3,
    ) -> None:
        n, c, *size = shape
        self.layer = Layer(n, *size, c, dims, kernel, stride, transposed, TYPES[dtype], path)
        self.dtype, self.shift, self.transposed = dtype, shift, transposed
        flat = dims == 2
        self.taps = (1 if flat else kernel, kernel, kernel)
        self.strides = (1 if flat else stride, stride, stride)
        seed = torch.Generator().manual_seed(sum(shape) + 100 * kernel + 10 * stride + transposed)
        out = [t * (s - 1) + 1 if transposed else (s - 1) // t + 1 for s, t in zip(size, self.strides, strict=True)]
        self.x = torch.randn(shape, generator=seed).add(mean).to(dtype)
        self.dy = torch.randn((n, c, *out), generator=seed).to(dtype)
        self.weight = torch.randn((c, 1, *self.taps), generator=seed)
        if path != ComputePath.FMA:
            self.weight = self.weight.to(dtype).float()
        self.bias = torch.randn(c, generator=seed)

    def _activations(self, x: Tensor) -> Guarded:
        return Guarded.of(x.permute(0, 2, 3, 4, 1), self.dtype, self.shift)

    def _weights(self) -> Guarded:
        return Guarded.of(self.weight[:, 0].permute(1, 2, 3, 0), torch.float32)

    def _empty_like(self, x: Tensor) -> Guarded:
        n, c, *size = x.shape
        return Guarded((n, *size, c), self.dtype, self.shift)

    def _workspace(self, host: CudaLibrary, which: Pass) -> Guarded:
        size = host.workspace_bytes(self.layer, which)
        assert size % 4 == 0
        return Guarded((size // 4,), torch.float32)

    def forward(self, host: CudaLibrary, bias: bool = True) -> Tensor:
        """[N, C, *out] in the layer's type."""
        x, w, b = self._activations(self.x), self._weights(), Guarded.of(self.bias, torch.float32)
        y = self._empty_like(self.dy)
        host.call("forward", self.layer, x.address, w.address, b.address if bias else None, y.address, None)
        assert y.intact()
        return y.tensor.permute(0, 4, 1, 2, 3)

    def forward_stats(self, host: CudaLibrary) -> tuple[Tensor, Tensor, Tensor]:
        """The output as `forward` gives it; mean and second moment, [N, C] float32."""
        x, w, b = self._activations(self.x), self._weights(), Guarded.of(self.bias, torch.float32)
        y, mean, moment = self._empty_like(self.dy), *(Guarded(tuple(self.x.shape[:2]), torch.float32) for _ in "12")
        work = self._workspace(host, Pass.FORWARD_STATS)
        addresses = (t.address for t in (x, w, b, y, mean, moment, work))
        host.call("forward_stats", self.layer, *addresses, work.tensor.numel() * 4, None)
        assert y.intact() and mean.intact() and moment.intact() and work.intact()
        return y.tensor.permute(0, 4, 1, 2, 3), mean.tensor, moment.tensor

    def grad_input(self, host: CudaLibrary) -> Tensor:
        """[N, C, *in] in the layer's type."""
        dy, w, dx = self._activations(self.dy), self._weights(), self._empty_like(self.x)
        host.call("grad_input", self.layer, dy.address, w.address, dx.address, None)
        assert dx.intact()
        return dx.tensor.permute(0, 4, 1, 2, 3)

    def grad_weight(self, host: CudaLibrary) -> Tensor:
        """[C, 1, KZ, K, K] float32."""
        x, dy = self._activations(self.x), self._activations(self.dy)
        dw, work = Guarded((*self.taps, self.layer.c), torch.float32), self._workspace(host, Pass.GRAD_WEIGHT)
        addresses = (t.address for t in (x, dy, dw, work))
        host.call("grad_weight", self.layer, *addresses, work.tensor.numel() * 4, None)
        assert dw.intact() and work.intact()
        return dw.tensor.permute(3, 0, 1, 2).unsqueeze(1)

    def reference(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer without bias, by PyTorch, in the type of its arguments."""
        convolve = F.conv_transpose3d if self.transposed else F.conv3d
        return convolve(x, weight, None, self.strides, [k // 2 for k in self.taps], groups=x.shape[1])

    def reference_gradients(self, absolute: bool = False) -> tuple[Tensor, Tensor]:
        """Of input and weights, in float64; of the absolute values if `absolute`."""
        x, w, dy = (t.double().abs() if absolute else t.double() for t in (self.x, self.weight, self.dy))
        x.requires_grad_(), w.requires_grad_()
        dx, dw = torch.autograd.grad(self.reference(x, w), (x, w), dy)
        return dx, dw

    def bound(self, exact: Tensor, magnitude: Tensor, terms: int) -> Tensor:
        """How far a result in the layer's type may be off: float sums, rounded once.

        Args:
            exact: the result in float64.
            magnitude: the sum of the absolute values of the products.
            terms: how many products there are at most.
        """
        return (terms + 2) * 2.0**-24 * magnitude + _rounding(exact, magnitude * (terms + 2) * 2.0**-24, self.dtype)


def _rounding(exact: Tensor, slack: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.float32:
        return torch.zeros_like(exact)
    info = torch.finfo(dtype)
    return (exact.abs() + slack).clamp(min=info.tiny) * info.eps / 2
