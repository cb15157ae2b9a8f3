"""The feed-forward kernel, run on the processor, against PyTorch in float64."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mednext_edge.ops.cuda_library import FEED_FORWARD, CudaLibrary, FeedForward
from tests.csrc.kernels import TYPES, Guarded

GELU_ERROR = 1.1e-6
"""Of the kernel's GELU, see test_gelu.py."""
GELU_SLOPE = 1.13
"""Its largest derivative, at the square root of 2."""
WIDTHS = ((32, 32), (32, 64), (64, 32), (64, 64), (64, 128), (128, 64), (128, 128))
HALVES = (torch.float16, torch.bfloat16)
VECTORS = ("gamma", "beta", "b1", "b2")


def call(host: CudaLibrary, arguments: FeedForward | None, pointers: list[int | None]) -> int:
    """What `mednext_ffn_forward` returns; the pointers without the stream."""
    function = ctypes.CDLL(str(host.path)).mednext_ffn_forward
    function.argtypes = FEED_FORWARD
    return int(function(None if arguments is None else ctypes.byref(arguments), *pointers, None))


class Case:
    """Random tensors of a layer, and what comes of them.

    Args:
        shape: (n, d, h, w).
        channels: of a, between, of y.
        dtype: type of a, the weights, the residual and y.
        without: names of `VECTORS` and "residual" that are not given.
        front: voxels by which y is larger than a in front of every axis.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        channels: tuple[int, int, int],
        dtype: torch.dtype,
        without: tuple[str, ...] = (),
        front: int = 0,
    ) -> None:
        seed = torch.Generator().manual_seed(sum(shape) + sum(channels))
        c, hidden, out = self.channels = channels
        self.shape, self.dtype, self.front, self.eps = shape, dtype, front, 1e-5
        n, *size = shape

        def randn(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=seed)

        # Samples and channels of very different means and spreads.
        spread, centre = randn(n, c).mul(0.5).exp(), randn(n, c)
        a = randn(n, *size, c) * spread[:, None, None, None] + centre[:, None, None, None]
        self.a = a.to(dtype)
        flat = self.a.double().flatten(1, 3)
        self.mean = flat.mean(1).float()
        self.moment = (flat - flat.mean(1, keepdim=True)).square().sum(1).float()
        self.w1, self.w2 = (randn(hidden, c) * c**-0.5).to(dtype), (randn(out, hidden) * hidden**-0.5).to(dtype)
        self.residual = None if "residual" in without else randn(n, *size, out).to(dtype)
        vectors = {"gamma": 1 + 0.2 * randn(c), "beta": 0.3 * randn(c), "b1": 0.5 * randn(hidden), "b2": randn(out)}
        self.vectors = {name: None if name in without else v for name, v in vectors.items()}

    def run(self, host: CudaLibrary, alias: bool = False) -> Tensor:
        """[N, D, H, W, out]; the rest of a padded y must stay as it was. `alias`: the residual is y."""
        c, hidden, out = self.channels
        n, *size = self.shape
        whole = Guarded((n, *(s + self.front for s in size), out), self.dtype)
        inside = (slice(None), *(slice(self.front, None),) * 3)
        y = whole.tensor[inside]
        residual = None
        if self.residual is not None:
            # With the strides of y, of which the padding must not be read.
            residual = whole if alias else Guarded(tuple(whole.tensor.shape), self.dtype)
            residual.tensor[inside] = self.residual
        arguments = FeedForward(n, *size, c, hidden, out, TYPES[self.dtype], self.eps, *y.stride()[:4])
        vectors = {k: None if v is None else Guarded.of(v, torch.float32) for k, v in self.vectors.items()}
        tensors = {
            "a": Guarded.of(self.a, self.dtype),
            "mean": Guarded.of(self.mean, torch.float32),
            "moment": Guarded.of(self.moment, torch.float32),
            "gamma": vectors["gamma"],
            "beta": vectors["beta"],
            "w1": Guarded.of(self.w1, self.dtype),
            "b1": vectors["b1"],
            "w2": Guarded.of(self.w2, self.dtype),
            "b2": vectors["b2"],
        }
        pointers = [None if t is None else t.address for t in tensors.values()]
        pointers += [None if residual is None else residual.tensor[inside].data_ptr(), y.data_ptr()]
        assert call(host, arguments, pointers) == 0
        assert whole.intact() and all(t.intact() for t in tensors.values() if t is not None)
        result = y.clone()
        y.fill_(torch.nan)
        assert whole.tensor.isnan().all()
        return result

    def exact(self) -> tuple[Tensor, Tensor]:
        """The output in float64, and how far a result may be off, element by element.

        What enters a product is rounded once to the type, sums are float, the output is rounded once.
        """
        unit, single = torch.finfo(self.dtype).eps / 2, 2.0**-23
        tiny = torch.finfo(self.dtype).smallest_normal * unit
        vectors = {k: None if v is None else v.double() for k, v in self.vectors.items()}
        gamma, beta, b1, b2 = (vectors[k] for k in VECTORS)
        per_sample = (slice(None), None, None, None)
        voxels = self.a[0, ..., 0].numel()
        scale = (self.moment.double() / voxels + self.eps).rsqrt()
        scale = (scale if gamma is None else scale * gamma)[per_sample]
        a, mean = self.a.double(), self.mean.double()[per_sample]
        x = (a - mean) * scale + (0 if beta is None else beta)
        # Of the norm in float: a * scale + shift, where shift is beta - mean * scale.
        slack = 8 * single * ((a.abs() + mean.abs()) * scale.abs() + (0 if beta is None else beta.abs()))
        dx = slack + unit * (x.abs() + slack) + tiny

        w1, w2 = self.w1.double(), self.w2.double()
        c, hidden, _ = self.channels
        p = F.linear(x, w1, b1)
        size = F.linear(x.abs() + dx, w1.abs(), None if b1 is None else b1.abs())
        dp = F.linear(dx, w1.abs()) + (c + 2) * single * size
        h = F.gelu(p)
        dh = GELU_SLOPE * dp + GELU_ERROR
        dh = dh + unit * (h.abs() + dh) + tiny

        y = F.linear(h, w2, b2)
        size = F.linear(h.abs() + dh, w2.abs(), None if b2 is None else b2.abs())
        if self.residual is not None:
            y, size = y + self.residual.double(), size + self.residual.double().abs()
        dy = F.linear(dh, w2.abs()) + (hidden + 3) * single * size
        return y, dy + unit * (y.abs() + dy) + tiny

    def torch_twin(self) -> Tensor:
        """The same by PyTorch's operators in the type, as automatic mixed precision runs them."""
        vectors = {k: None if v is None else v.to(self.dtype) for k, v in self.vectors.items()}
        per_sample = (slice(None), None, None, None)
        voxels = self.a[0, ..., 0].numel()
        x = (self.a.float() - self.mean[per_sample]) * (self.moment / voxels + self.eps).rsqrt()[per_sample]
        gamma, beta = self.vectors["gamma"], self.vectors["beta"]
        x = (x if gamma is None else x * gamma) + (0 if beta is None else beta)
        h = F.gelu(F.linear(x.to(self.dtype), self.w1, vectors["b1"]))
        y = F.linear(h, self.w2, vectors["b2"])
        return y if self.residual is None else y + self.residual


def check(case: Case, y: Tensor) -> None:
    exact, bound = case.exact()
    assert not y.isnan().any()
    error = (y.double() - exact).abs()
    assert (error <= bound).all()
    twin = (case.torch_twin().double() - exact).abs()
    assert error.square().mean().sqrt() <= 1.1 * twin.square().mean().sqrt()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("channels", "out"), WIDTHS)
def test_every_width(host: CudaLibrary, channels: int, out: int, dtype: torch.dtype) -> None:
    """Two samples of other statistics, each of one whole tile of voxels and a part of one."""
    case = Case((2, 3, 3, 5), (channels, 2 * channels, out), dtype)
    check(case, case.run(host))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    ("channels", "hidden", "out"),
    [(32, 32, 32), (32, 96, 32), (32, 512, 32), (64, 32, 32), (64, 512, 64), (128, 96, 64), (128, 512, 128)],
    ids=str,
)
def test_hidden_columns(host: CudaLibrary, channels: int, hidden: int, out: int, dtype: torch.dtype) -> None:
    """Weights that stay in shared memory, and those that come round again and again."""
    case = Case((1, 3, 4, 4), (channels, hidden, out), dtype)
    check(case, case.run(host))


@pytest.mark.parametrize(("channels", "hidden"), [(32, 64), (128, 256)], ids=str)
def test_more_tiles_than_warps(host: CudaLibrary, channels: int, hidden: int) -> None:
    """Several rounds, the last of which only some warps have work in, with weights that stay and that do not."""
    case = Case((1, 9, 17, 15) if channels == 32 else (1, 5, 11, 12), (channels, hidden, channels), torch.float16)
    check(case, case.run(host))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 1, 16), (2, 1, 33, 1), (1, 16, 2, 1), (9, 1, 2, 2)], ids=str)
def test_shapes(host: CudaLibrary, shape: tuple[int, int, int, int]) -> None:
    """One voxel, whole tiles, one beyond, more samples than blocks."""
    case = Case(shape, (32, 64, 32), torch.bfloat16)
    check(case, case.run(host))


@pytest.mark.parametrize("without", [(name,) for name in (*VECTORS, "residual")] + [(*VECTORS, "residual")], ids=str)
def test_what_may_be_left_out(host: CudaLibrary, without: tuple[str, ...]) -> None:
    case = Case((2, 2, 3, 4), (32, 64, 64), torch.float16, without)
    check(case, case.run(host))


@pytest.mark.parametrize("alias", (False, True), ids=("beside", "in place"))
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 7, 6), (2, 5, 1, 1)], ids=str)
def test_padded_output(host: CudaLibrary, shape: tuple[int, int, int, int], alias: bool) -> None:
    """y lies in a larger tensor, as an upsampling block pads it; the residual too, or is y."""
    for front in (0, 1):
        case = Case(shape, (64, 64, 32), torch.float16, front=front)
        check(case, case.run(host, alias))


def test_large_values_do_not_leak(host: CudaLibrary) -> None:
    """An infinity stays in its voxel, and the products of one sample do not reach another."""
    case = Case((2, 2, 3, 4), (32, 64, 32), torch.float16)
    plain = case.run(host)
    case.a[1, 1, 2, 3, 5] = torch.inf
    y = case.run(host)
    assert not y[1, 1, 2, 3].isfinite().any()
    y[1, 1, 2, 3] = plain[1, 1, 2, 3]
    assert torch.equal(y, plain)


GOOD: dict[str, Any] = {"n": 1, "d": 2, "h": 2, "w": 2, "channels": 32, "hidden": 64, "out": 32, "dtype": 1}
GOOD |= {"eps": 1e-5, "stride_n": 256, "stride_d": 128, "stride_h": 64, "stride_w": 32}
REQUIRED = (0, 1, 2, 5, 7, 10)
"""Of the pointers, those that must be given; of these, and of the residual, those of 16 bytes."""
WIDE = (0, 5, 7, 9, 10)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"n": 0}, -2),
        ({"d": 0}, -2),
        ({"h": -1}, -2),
        ({"n": 65536}, -2),
        ({"w": 2**40}, -2),
        ({"d": 2**11, "h": 2**10, "w": 2**10}, -2),
        ({"h": 2**29, "w": 2**29}, -2),
        ({"dtype": 0}, -5),
        ({"dtype": 3}, -5),
        ({"channels": 16}, -7),
        ({"channels": 96}, -7),
        ({"channels": 256}, -7),
        ({"channels": 0}, -7),
        ({"out": 0}, -7),
        ({"out": 16}, -7),
        ({"out": 96}, -7),
        ({"channels": 64, "out": 256}, -7),
        ({"channels": 128, "out": 32}, -7),
        ({"channels": 128, "out": 256}, -7),
        ({"hidden": 0}, -7),
        ({"hidden": -32}, -7),
        ({"hidden": 48}, -7),
        ({"n": 2, "stride_n": 260}, -8),
        ({"stride_d": 132}, -8),
        ({"stride_h": 66}, -8),
        ({"stride_w": 36}, -8),
        ({"stride_w": 24}, -8),
        ({"stride_h": 0}, -8),
        ({"stride_d": -128}, -8),
    ],
    ids=str,
)
def test_layers_that_cannot_be(host: CudaLibrary, change: dict[str, int], expected: int) -> None:
    memory = torch.full((4096,), torch.nan)
    assert memory.data_ptr() % 16 == 0
    assert call(host, FeedForward(**(GOOD | change)), [memory.data_ptr()] * 11) == expected
    assert memory.isnan().all()


def test_strides_of_axes_with_one_voxel_do_not_matter(host: CudaLibrary) -> None:
    case = Case((1, 1, 1, 3), (32, 32, 32), torch.float16)
    y = torch.full((3, 32), torch.nan, dtype=torch.float16)
    arguments = FeedForward(1, 1, 1, 3, 32, 32, 32, TYPES[torch.float16], case.eps, 1, 0, -5, 32)
    tensors = (case.a, case.mean, case.moment, *(case.vectors[k] for k in ("gamma", "beta")))
    tensors += (case.w1, case.vectors["b1"], case.w2, case.vectors["b2"], case.residual, y)
    assert call(host, arguments, [t.data_ptr() for t in tensors if t is not None]) == 0
    assert torch.equal(y, case.run(host).view(3, 32))


def test_pointers_that_cannot_be(host: CudaLibrary) -> None:
    memory = torch.full((4096,), torch.nan)
    good = [memory.data_ptr()] * 11
    assert call(host, None, list(good)) == -1
    for index in range(11):
        for wrong, expected in ((None, -1 if index in REQUIRED else 0), (good[0] + 2, -8 if index in WIDE else -1)):
            if expected == 0:
                continue
            pointers = [*good[:index], wrong, *good[index + 1 :]]
            assert call(host, FeedForward(**GOOD), pointers) == expected, (index, wrong)
    assert memory.isnan().all()
