"""The depthwise operators through our kernels, compiled for the processor: tensors, layouts, derivatives."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mednext_edge.errors import MednextEdgeError, UsageError
from mednext_edge.fusion.depthwise import use_depthwise
from mednext_edge.models.cmunext import CMUNeXtConfig
from mednext_edge.models.config import MedNeXtConfig
from mednext_edge.models.families import FAMILIES
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.models.mednext2d import MedNeXt2dConfig
from mednext_edge.ops import depthwise3d as ops
from mednext_edge.ops import depthwise3d_cuda as cuda
from mednext_edge.ops.cuda_library import CudaLibrary
from mednext_edge.ops.depthwise3d import depthwise3d

from .test_depthwise3d import SIZES, draw, every_form, every_layout, every_rank, form_of, torchs

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def on_our_kernels(kernels: CudaLibrary) -> None:
    """Every test here runs on them."""


def error(found: Tensor, exact: Tensor) -> float:
    assert found.shape == exact.shape
    assert torch.isfinite(found).all()
    return float((found.double() - exact).abs().max() / exact.abs().max())


def derivatives(
    form: Callable[..., Tensor], inputs: list[Tensor], slope: Tensor, *, stride: int, transposed: bool
) -> tuple[Tensor, ...]:
    """Output and gradients of a form; `slope` is the gradient of the output."""
    inputs = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in inputs]
    y = form(*inputs, stride=stride, transposed=transposed)
    return (y.detach(), *torch.autograd.grad(y, inputs, slope.to(y.dtype)))


@pytest.mark.parametrize(
    ("kernel", "size", "channels"),
    [
        (3, SIZES["odd"], 3),
        (3, SIZES["one voxel"], 16),
        (5, SIZES["even"], 8),
        (5, SIZES["one slice"], 1),
        (7, SIZES["smaller than the kernel"], 9),
        (9, SIZES["odd"], 4),
        (1, SIZES["one column"], 5),
        (3, SIZES["one pixel"], 16),
        (3, (17, 9), 33),
        (5, SIZES["even image"], 8),
        (7, SIZES["image of one row"], 1),
        (7, (9, 19), 3),
        (9, SIZES["odd image"], 20),
        (11, SIZES["odd image"], 3),
    ],
)
@every_dtype
@every_form
def test_forward_and_gradients(
    stride: int, transposed: bool, dtype: torch.dtype, kernel: int, size: tuple[int, ...], channels: int
) -> None:
    given = [t.to(dtype) for t in draw(size, kernel, channels=channels)]
    wide = [t.double() for t in given]
    like = torchs(*wide, stride=stride, transposed=transposed)
    slope = torch.randn(like.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    # PyTorch's in float32, rounded: its bfloat16 gradients are at times not a number, or garbage.
    exact, terms, theirs, ours = (
        derivatives(form, inputs, slope_of, stride=stride, transposed=transposed)
        for form, inputs, slope_of in (
            (torchs, wide, slope),
            (torchs, [t.abs() for t in wide], slope.abs()),
            (torchs, [t.float() for t in given], slope),
            (depthwise3d, given, slope),
        )
    )
    theirs = tuple(t.to(dtype) for t in theirs)
    for name, e, a, t, o in zip(("y", "dx", "dweight", "dbias"), exact, terms, theirs, ours, strict=True):
        assert o.dtype == dtype
        # Where torch happens to hit the value: one rounding of the result, and of a float32 sum of these terms.
        rounding = torch.finfo(dtype).eps + torch.finfo(torch.float32).eps * float(a.max() / e.abs().max())
        assert error(o, e) <= max(2 * error(t, e), rounding), name


@every_layout
@every_form
@every_rank
def test_any_layout_goes_in_and_the_same_comes_out(
    small: tuple[int, ...], stride: int, transposed: bool, last: bool
) -> None:
    x, weight, bias = (t.float() for t in draw(small, 3, channels=8))
    expected = depthwise3d(x, weight, bias, stride=stride, transposed=transposed)
    turned = weight.transpose(2, -1).contiguous().transpose(2, -1)
    layout = form_of(x, last)
    for given in (x.contiguous(memory_format=layout), torch.cat([x, x], -1).contiguous(memory_format=layout)[..., :5]):
        y = depthwise3d(given, turned, bias.repeat_interleave(2)[::2], stride=stride, transposed=transposed)
        assert y.is_contiguous(memory_format=layout)
        assert torch.equal(y, expected)


@every_layout
@pytest.mark.parametrize("stride", ops.STRIDES)
@every_rank
def test_operators_keep_their_promises(small: tuple[int, ...], stride: int, last: bool) -> None:
    x, weight, bias = (t.float().requires_grad_() for t in draw(small, 3, last=last))
    y = torch.randn_like(ops.convolution(x, weight, None, stride)).requires_grad_()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(ops.convolution, (x, weight, bias, stride), test_utils=checks)
    torch.library.opcheck(ops.adjoint, (y, weight, bias, [*small], stride), test_utils=checks)
    torch.library.opcheck(ops.weight_gradient, (x, y, 3, stride), test_utils=checks)


@pytest.mark.parametrize("stride", ops.STRIDES)
@every_dtype
@pytest.mark.parametrize(("size", "kernel"), [((5, 6, 7), 3), ((9, 17), 7)])
def test_statistics_of_the_output(size: tuple[int, ...], kernel: int, dtype: torch.dtype, stride: int) -> None:
    """They are as good as those of the exact output, also where the mean is large against the spread."""
    x, weight, bias = (t.to(dtype) for t in draw(size, kernel, channels=8))
    bias = bias + 100
    y, mean, moment = cuda.convolution_stats(x, weight, bias, stride)
    assert torch.equal(y, cuda.convolution(x, weight, bias, stride))
    exact = torchs(x.double(), weight.double(), bias.double(), stride=stride, transposed=False).flatten(2)
    assert error(mean, exact.mean(2)) <= 1e-6
    assert error(moment, exact.var(2, correction=0) * exact.shape[2]) <= 1e-4


@every_dtype
def test_weights_as_the_kernels_read_them(dtype: torch.dtype) -> None:
    _, flat, _ = draw((1, 1), 5, channels=3)
    assert torch.equal(cuda.taps(flat.to(dtype))[1, 2], flat.to(dtype)[:, 0, 1, 2].float())
    assert cuda.taps(flat).is_contiguous() and cuda.taps(flat).shape == (5, 5, 3)
    _, weight, _ = draw((1, 1, 1), 3, channels=4)
    for given in (weight.to(dtype), weight.to(dtype).contiguous(memory_format=torch.channels_last_3d)):
        found = cuda.taps(given)
        assert (found.shape, found.dtype, found.is_contiguous()) == ((3, 3, 3, 4), torch.float32, True)
        assert torch.equal(found[0, 1, 2], given[:, 0, 0, 1, 2].float())


@pytest.mark.parametrize("size", [(9, 9, 9), (19, 18)])
def test_the_same_bits_every_time(size: tuple[int, ...]) -> None:
    x, weight, _ = (t.float() for t in draw(size, 3, channels=8))
    y = cuda.convolution(x, weight, None, 1)
    assert torch.equal(cuda.convolution(x, weight, None, 1), y)
    assert torch.equal(cuda.weight_gradient(x, y, 3, 1), cuda.weight_gradient(x, y, 3, 1))


def test_a_network_computes_and_trains_as_before(tiny_model: LoadedModel) -> None:
    nets = [copy.deepcopy(tiny_model.net).train() for _ in range(2)]
    assert use_depthwise(nets[0]) == 9
    x = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = [net(x) for net in nets]
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-4)
    for y in outputs:
        y.square().sum().backward()
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        if b.grad is not None and b.grad.abs().max() > 1e-3:  # a bias in front of a norm has no gradient but noise
            assert a.grad is not None
            assert error(a.grad, b.grad.double()) < 1e-4


@pytest.mark.parametrize(
    "config",
    [
        CMUNeXtConfig(widths=(2, 4, 4, 6, 8), depths=(1,) * 5, kernels=(3, 3, 5, 7, 9)),
        MedNeXt2dConfig(widths=(4, 6, 8, 10), depths=(1,) * 4),
        MedNeXtConfig(
            spatial_dims=2, channels=4, blocks=(1,) * 3, expansion=(2,) * 3, down_expansion=(2,), down_grn=(False,)
        ),
    ],
    ids=lambda config: type(config).__name__,
)
def test_a_network_in_2d_computes_and_trains_as_before(
    config: CMUNeXtConfig | MedNeXt2dConfig | MedNeXtConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def counted(function: str, *given: object, _call: Callable[..., None] = cuda._call, **more: object) -> None:
        called.append(function)
        _call(function, *given, **more)

    monkeypatch.setattr(cuda, "_call", counted)
    torch.manual_seed(0)
    family = {CMUNeXtConfig: "cmunext", MedNeXt2dConfig: "mednext2d", MedNeXtConfig: "mednext"}[type(config)]
    theirs = FAMILIES[family].build(config.to_dict()).train()
    ours, exact = copy.deepcopy(theirs), copy.deepcopy(theirs).double()
    places = use_depthwise(ours)
    x = torch.randn(2, config.in_channels, 32, 64, generator=torch.Generator().manual_seed(0))
    outputs = [net(x.to(next(net.parameters()).dtype)) for net in (ours, theirs, exact)]
    for y in outputs:
        y.square().mean().backward()
    assert (len(called), called.count("grad_weight")) == (3 * places, places)
    assert error(outputs[0].detach(), outputs[2].detach()) < 1e-4
    compared = 0
    for (name, a), b, c in zip(ours.named_parameters(), theirs.parameters(), exact.parameters(), strict=True):
        if a.grad is None or b.grad is None or c.grad is None:
            assert name == "dummy_tensor"
            continue
        if c.grad.norm() < 1e-9:  # a bias in front of a norm
            continue
        off, torchs_off = ((t.grad.double() - c.grad).norm() for t in (a, b) if t.grad is not None)
        assert off <= 4 * torchs_off + 1e-4 * c.grad.norm(), name
        compared += 1
    assert compared > 2 * places


def test_what_the_kernels_do_not_take_goes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = draw((3, 4, 5), 3)

    def refuse(*_: object) -> Tensor:
        raise AssertionError("reached the kernels")

    monkeypatch.setattr(cuda, "convolution", refuse)
    assert depthwise3d(x, weight, bias).dtype == torch.float64
    assert depthwise3d(x[:0].float(), weight.float()).shape[0] == 0
    assert depthwise3d(x[:, :, :1].float(), torch.zeros(3, 1, 33, 33, 33)).shape[2:] == (1, 4, 5)
    with pytest.raises(AssertionError, match="reached"):
        depthwise3d(x.float(), weight.float(), bias.float())


def test_what_the_library_refuses_is_said() -> None:
    x = torch.zeros(1, 2, 3, 4, 5)
    words = r"`forward` did not run \(code -3: .*odd.*\) for input \[1, 2, 3, 4, 5\], 3-D, kernel 2, stride 1, F32"
    with pytest.raises(MednextEdgeError, match=words):
        cuda.convolution(x, torch.zeros(2, 1, 2, 2, 2), None, 1)


def test_tensors_on_two_devices() -> None:
    with pytest.raises(UsageError, match=r"found tensors on cpu and meta; put all"):
        cuda.convolution(torch.zeros(1, 2, 3, 4, 5), torch.zeros(2, 1, 3, 3, 3, device="meta"), None, 1)
