"""Our CPU kernels against PyTorch in float64: values, gradients, layouts, threads."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mednext_edge.errors import MednextEdgeError, UsageError
from mednext_edge.fusion.cpu_training import use_cpu_training
from mednext_edge.fusion.depthwise import DepthwiseConv
from mednext_edge.models.config import MedNeXtConfig
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.ops import channel_norm as norm_ops
from mednext_edge.ops import cpu_library, depthwise3d_cpu
from mednext_edge.ops import depthwise3d as ops
from mednext_edge.ops.channel_norm import channel_norm

# One register holds 4, 8 or 16 channels, by processor: none whole, some and a rest, whole ones alone. Rows of outputs
# are computed 8, 4 and 1 at a time.
CHANNELS = (1, 3, 16, 37)
SIZES = ((1, 1, 1), (2, 3, 2), (9, 4, 21), (6, 5, 16))
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last_3d}


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def check(found: Tensor, exact: Tensor) -> None:
    """Within some units of the last place of the largest value."""
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=3e-6 * max(1.0, float(exact.abs().max())))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("stride", ops.STRIDES)
@pytest.mark.parametrize("kernel", depthwise3d_cpu.KERNELS)
def test_depthwise(kernel: int, stride: int, layout: torch.memory_format) -> None:
    for channels, size in itertools.product(CHANNELS, SIZES):
        x, weight, bias = draw(2, channels, *size), draw(channels, 1, kernel, kernel, kernel), draw(channels)
        y = ops.convolution_twin(x, weight, bias, stride)
        slope = torch.randn_like(y)
        x32, w32, b32, s32 = (t.float() for t in (x, weight, bias, slope))
        x32, s32 = x32.contiguous(memory_format=layout), s32.contiguous(memory_format=layout)
        assert depthwise3d_cpu.takes(x32, kernel)
        check(ops.convolution(x32, w32, b32, stride), y)
        check(ops.adjoint(s32, w32, b32, size, stride), ops.adjoint_twin(slope, weight, bias, size, stride))
        check(ops.weight_gradient(x32, s32, kernel, stride), ops.weight_twin(x, slope, kernel, stride))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stride", ops.STRIDES)
@pytest.mark.parametrize("kernel", depthwise3d_cpu.KERNELS)
def test_depthwise_in_half_precision(kernel: int, stride: int, dtype: torch.dtype) -> None:
    """Exact sums of rounded numbers, rounded once: whatever computes them, and however small the volume."""
    for channels, size in (*itertools.product(CHANNELS, SIZES), (512, (3, 1, 1))):
        x, weight, bias = (
            t.to(dtype) for t in (draw(2, channels, *size), draw(channels, 1, kernel, kernel, kernel), draw(channels))
        )
        x = x.contiguous(memory_format=torch.channels_last_3d)
        exact = [t.double() for t in (x, weight, bias)]
        y = ops.convolution_twin(*exact, stride)
        slope = torch.randn_like(y).to(dtype).contiguous(memory_format=torch.channels_last_3d)
        results = (
            (ops.convolution(x, weight, bias, stride), y),
            (
                ops.adjoint(slope, weight, bias, size, stride),
                ops.adjoint_twin(slope.double(), *exact[1:], size, stride),
            ),
            (ops.weight_gradient(x, slope, kernel, stride), ops.weight_twin(exact[0], slope.double(), kernel, stride)),
        )
        for found, expected in results:
            assert found.dtype == dtype
            atol = 2 * torch.finfo(dtype).eps * float(expected.abs().max())
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["kernel", "twin"])
def test_channel_norm(dtype: torch.dtype, layout: torch.memory_format, affine: bool) -> None:
    for channels, size in itertools.product(CHANNELS, SIZES[1:]):
        leaves = [draw(2, channels, *size), *((draw(channels), draw(channels + 1)[1:]) if affine else ())]
        results = []
        for kind in (torch.float64, dtype):
            given = [t.to(kind).clone().requires_grad_() for t in leaves]
            x, weight, bias = given if affine else (given[0], None, None)
            x = x.contiguous(memory_format=layout)
            own = kind == dtype and len(results) == 1
            y = channel_norm(x, weight, bias, 1e-5) if own else F.group_norm(x, channels, weight, bias, 1e-5)
            (y * draw(*y.shape).to(kind)).sum().backward()  # type: ignore[no-untyped-call]
            results.append((y.detach(), *(t.grad for t in given)))
        for exact, found in zip(*results, strict=True):
            assert exact is not None and found is not None
            atol = (3e-6 if dtype == torch.float32 else 1e-13) * max(1.0, float(exact.abs().max()))
            torch.testing.assert_close(found.double(), exact, rtol=0, atol=atol)


def test_a_norm_far_from_zero_keeps_its_digits() -> None:
    x = (1000 + draw(1, 8, 24, 24, 24)).float().contiguous(memory_format=torch.channels_last_3d)
    found = channel_norm(x, None, None, 1e-5)
    torch.testing.assert_close(found.double(), F.group_norm(x.double(), 8, eps=1e-5), rtol=0, atol=2e-4)


def test_a_constant_channel_is_normalised_to_zero() -> None:
    x = torch.full((1, 5, 3, 4, 5), 7.25, requires_grad=True)
    y = channel_norm(x, None, None, 1e-5)
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert not y.any() and x.grad is not None and torch.isfinite(x.grad).all()


def test_half_precision_is_computed_in_float32() -> None:
    x = draw(1, 4, 3, 4, 5).bfloat16()
    expected = channel_norm(x.float(), None, None, 1e-5).bfloat16()
    assert torch.equal(channel_norm(x, None, None, 1e-5), expected)


def test_the_norm_is_a_proper_operator() -> None:
    x, weight = draw(2, 3, 3, 2, 4).requires_grad_(), draw(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda *t: channel_norm(*t, None, 1e-5), (x, weight))
    torch.library.opcheck(norm_ops.forward, (x.detach(), weight.detach(), None, 1e-5))  # type: ignore[no-untyped-call]
    torch.library.opcheck(norm_ops.forward, (x.detach().float().requires_grad_(), None, weight.detach().float(), 1e-5))  # type: ignore[no-untyped-call]


def test_results_do_not_depend_on_threads() -> None:
    x = draw(2, 20, 9, 11, 13).float().contiguous(memory_format=torch.channels_last_3d)
    weight, before = draw(20, 1, 5, 5, 5).float(), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            y, mean, rstd = norm_ops.forward(x, None, None, 1e-5)
            results.append(
                (
                    ops.convolution(x, weight, None, 1),
                    ops.adjoint(x, weight, None, x.shape[2:], 1),
                    ops.weight_gradient(x, y, 5, 1),
                    *norm_ops.backward(x, y, None, mean, rstd),
                )
            )
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="expected \\[N, C, D, H, W\\]"):
        channel_norm(torch.zeros(1, 2, 3, 4, 5), torch.ones(3), None, 1e-5)
    x = torch.zeros(1, 2, 3, 3, 3)
    layer = cpu_library.Layer(1, 3, 3, 3, 2, 4, 1)  # an even kernel
    with pytest.raises(MednextEdgeError, match="sizes or tensors that it does not take"):
        cpu_library.call("dwconv3d_forward", layer, x, x, None, x)


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_network_in_training_form_is_the_same_function(kernel: int) -> None:
    config = MedNeXtConfig(
        in_channels=2,
        classes=3,
        channels=4,
        blocks=(1,) * 5,
        expansion=(2,) * 5,
        down_expansion=(2,) * 2,
        down_grn=(False,) * 2,
        encoder_kernel=kernel,
        decoder_kernel=kernel,
        deep_supervision=True,
    )
    torch.manual_seed(0)
    nets = {"exact": MedNeXt(config).double()}
    for name in ("PyTorch's", "ours"):
        nets[name] = copy.deepcopy(nets["exact"]).float()
    assert use_cpu_training(nets["ours"]) == 9
    assert sum(isinstance(m, DepthwiseConv) for m in nets["ours"].modules()) == 9
    results = {}
    for name, net in nets.items():
        outputs = net(draw(2, 2, 12, 16, 8).to(next(net.parameters()).dtype))
        sum(y.square().mean() for y in outputs).backward()
        gradients = {key: p.grad for key, p in net.named_parameters() if p.grad is not None}
        results[name] = {**gradients, **{f"output {i}": y.detach() for i, y in enumerate(outputs)}}
    for key, exact in results["exact"].items():
        off = {name: float((results[name][key] - exact).abs().max()) for name in ("PyTorch's", "ours")}
        # Rounding is chance; what is wrong is off by more.
        assert off["ours"] <= 5 * off["PyTorch's"] + 1e-6 * float(exact.abs().max()), (key, off)
