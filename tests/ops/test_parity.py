"""The parity form of the stride-2 transposed depthwise convolution against its twin, forward and gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mednext_edge.ops.parity import conv_transpose_parity, conv_transpose_reference, interleave, parity_weights

KERNELS = (3, 5, 7)
SIZES = {
    "one voxel": (1, 1, 1),
    "one slice": (1, 6, 5),
    "one column": (4, 1, 1),
    "odd": (3, 5, 7),
    "smaller than the kernel": (2, 3, 2),
    "even": (4, 6, 8),
    "2-D": (5, 6),
    "2-D, one row": (1, 7),
    "2-D, one voxel": (1, 1),
}

every_case = pytest.mark.parametrize(("kernel", "size"), [(k, s) for k in KERNELS for s in SIZES.values()])


def draw(
    size: tuple[int, ...], kernel: int, batch: int = 2, channels: int = 3, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(kernel)
    x = torch.randn((batch, channels, *size), generator=generator, dtype=torch.float64)
    weight = torch.randn((channels, 1, *(kernel,) * len(size)), generator=generator, dtype=torch.float64)
    return x.to(dtype), weight.to(dtype)


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected).abs().max() / expected.abs().max())


@every_case
def test_forward_in_float64(kernel: int, size: tuple[int, ...]) -> None:
    x, weight = draw(size, kernel)
    found = conv_transpose_parity(x, parity_weights(weight))
    assert found.shape[2:] == tuple(2 * n - 1 for n in size)
    assert relative(found, conv_transpose_reference(x, weight)) <= 1e-14


@every_case
def test_forward_in_float32_errs_at_most_twice_as_much_as_torch(kernel: int, size: tuple[int, ...]) -> None:
    x, weight = draw(size, kernel)
    exact = conv_transpose_reference(x, weight)
    ours = conv_transpose_parity(x.float(), parity_weights(weight.float()))
    theirs = conv_transpose_reference(x.float(), weight.float())
    # One rounding of the result is no error of the method, where torch happens to hit the value itself.
    assert relative(ours, exact) <= max(2 * relative(theirs, exact), torch.finfo(torch.float32).eps)


@every_case
def test_gradients(kernel: int, size: tuple[int, ...]) -> None:
    def gradients(form: str) -> tuple[Tensor, Tensor]:
        x, weight = (t.requires_grad_() for t in draw(size, kernel))
        if form == "parity":
            out = conv_transpose_parity(x, parity_weights(weight))
        else:
            out = conv_transpose_reference(x, weight)
        slope = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
        (out.square() * slope).sum().backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        assert weight.grad is not None
        return x.grad, weight.grad

    for ours, theirs in zip(gradients("parity"), gradients("twin"), strict=True):
        assert relative(ours, theirs) <= 1e-13


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradient_is_that_of_finite_differences(kernel: int) -> None:
    x, weight = (t.requires_grad_() for t in draw((2, 3), kernel, batch=1, channels=2))
    assert torch.autograd.gradcheck(lambda a, b: conv_transpose_parity(a, parity_weights(b)), (x, weight))


@settings(max_examples=40, deadline=None)
@given(
    size=st.one_of(st.tuples(*[st.integers(1, 7)] * 2), st.tuples(*[st.integers(1, 5)] * 3)),
    kernel=st.sampled_from((1, *KERNELS, 9)),
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
)
def test_any_shape(size: tuple[int, ...], kernel: int, batch: int, channels: int) -> None:
    x, weight = draw(size, kernel, batch, channels)
    found, expected = conv_transpose_parity(x, parity_weights(weight)), conv_transpose_reference(x, weight)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-13


@pytest.mark.parametrize("size", [(3, 4, 5), (4, 5)])
def test_non_contiguous_input(size: tuple[int, ...]) -> None:
    x, weight = draw(size, 3)
    turned = x.transpose(2, -1)
    strided = torch.stack([x, x + 1], -1)[..., 0]
    layout = torch.channels_last_3d if len(size) == 3 else torch.channels_last
    for view in (turned, strided, x.contiguous(memory_format=layout), x.flip(0)[::1]):
        found = conv_transpose_parity(view, parity_weights(weight))
        assert relative(found, conv_transpose_reference(view.contiguous(), weight)) <= 1e-14
    assert not turned.is_contiguous()
    assert not strided.is_contiguous()
    # A kernel whose axes were swapped in place is no different.
    assert (
        relative(
            conv_transpose_parity(x, parity_weights(weight.transpose(2, -1))),
            conv_transpose_reference(x, weight.transpose(2, -1).contiguous()),
        )
        <= 1e-14
    )


@pytest.mark.parametrize("size", [(3, 4, 5), (4, 5)])
def test_empty_batch(size: tuple[int, ...]) -> None:
    x, weight = draw(size, 3, batch=0)
    found = conv_transpose_parity(x, parity_weights(weight))
    assert found.shape == (0, 3, *(2 * n - 1 for n in size))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dims", [2, 3])
def test_the_parities_share_the_taps_among_them(kernel: int, dims: int) -> None:
    """No tap is computed twice, none is lost: that is what the form saves."""
    weight = torch.arange(1.0, 1 + kernel**dims).reshape(1, 1, *(kernel,) * dims)
    parts = parity_weights(weight)
    assert len(parts) == 2**dims
    taps = torch.cat([sub.flatten() for sub, _ in parts])
    assert torch.equal(taps.sort().values, weight.flatten())
    # Every parity has as many outputs as inputs: padding makes up for the taps but one.
    for sub, padding in parts:
        for axis in range(dims):
            front, back = padding[2 * (dims - 1 - axis) :][:2]
            assert front + back == sub.shape[2 + axis] - 1


@pytest.mark.parametrize("dims", [2, 3])
def test_interleave_puts_each_parity_in_its_place(dims: int) -> None:
    size = (2, 3, 4)[:dims]
    parts = [torch.full((2, 3, *size), float(i)) for i in range(2**dims)]
    whole = interleave(parts)
    assert whole.shape == (2, 3, *(2 * n for n in size))
    for i in range(2**dims):
        start = [(i >> (dims - 1 - axis)) & 1 for axis in range(dims)]
        cut = whole[(slice(None), slice(None), *(slice(s, None, 2) for s in start))]
        assert torch.equal(cut, parts[i])
