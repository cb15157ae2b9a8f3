"""Rounding with gradients: the values are those of the graph, the gradients those of the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mednext_edge.ops.parity import parity_weights
from mednext_edge.quantize.fake import OCTAVES, InputQuantizer, WeightRounder, _Rounded
from mednext_edge.quantize.qdq import quantize_weight


def test_inputs_are_rounded_to_127_levels_and_clipped() -> None:
    quantizer = InputQuantizer(12.7)
    x = torch.tensor([0.0, 0.04, 0.06, -0.26, 12.64, 12.66, 90.0, -90.0])
    expected = torch.tensor([0.0, 0.0, 0.1, -0.3, 12.6, 12.7, 12.7, -12.7])
    torch.testing.assert_close(quantizer(x), expected)


def test_gradients_pass_inside_and_stop_outside() -> None:
    quantizer = InputQuantizer(1.0)
    x = torch.tensor([0.3, -0.9, 1.5, -2.0], requires_grad=True)
    quantizer(x).backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 2.0, 0.0, 0.0]


def test_the_threshold_s_gradient_is_the_change_of_the_rounded_values() -> None:
    """With the levels held, a rounded value is level * scale: its slope over the scale is the level minus x / scale."""
    torch.manual_seed(0)
    x, weight = torch.randn(1000), torch.randn(1000)
    quantizer = InputQuantizer(1.5)
    (quantizer(x) * weight).sum().backward()
    scale = 1.5 / 127
    level = x / scale
    slope = torch.where(x.abs() <= 1.5, level.round() - level, 127 * x.sign())
    # threshold = start * 2 ** (OCTAVES * shift)
    expected = (weight * slope).sum() / 127 * 1.5 * np.log(2) * OCTAVES
    assert quantizer.shift.grad is not None
    torch.testing.assert_close(quantizer.shift.grad, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3, 5, 7), (2, 5, 9, 11, 13)])
@pytest.mark.parametrize("order", ["contiguous", "channels-last", "with gaps", "grad in another order"])
def test_the_gradients_of_our_kernel_are_those_of_the_formula(shape: tuple[int, ...], order: str) -> None:
    """float64 goes by the formula; no value lies where rounding could fall on either side."""
    generator = torch.Generator().manual_seed(sum(shape))
    level = torch.randint(-200, 200, shape, generator=generator) + (torch.rand(shape, generator=generator) - 0.5) * 0.8
    exact = (level.double() * (1.25 / 127)).float()
    grad = torch.randn(shape, generator=generator)
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape), torch.contiguous_format)
    x = exact.contiguous(memory_format=last) if order == "channels-last" else exact.clone()
    if order == "with gaps":
        x = torch.stack([exact, exact], -1)[..., 0]
    if order == "grad in another order":
        grad = grad.contiguous(memory_format=last)
    results = []
    for values in (x, exact.double()):
        leaf = values.detach().requires_grad_()
        threshold = torch.tensor(1.25, dtype=values.dtype, requires_grad=True)
        _Rounded.apply(leaf, threshold).backward(grad.to(values.dtype))  # type: ignore[no-untyped-call]
        results.append((leaf.grad, threshold.grad))
    (ours, slope), (theirs, expected) = results
    assert ours is not None and theirs is not None
    assert torch.equal(ours.double(), theirs)
    torch.testing.assert_close(slope.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_threshold_that_is_too_large_is_learnt() -> None:
    """Gradient descent on the rounding error alone finds a threshold near the one of least error."""
    torch.manual_seed(0)
    x = torch.randn(4096)
    errors = {t: float((InputQuantizer(t)(x).detach() - x).square().mean()) for t in np.linspace(1.0, 40.0, 391)}
    best = min(errors.values())
    quantizer = InputQuantizer(40.0)
    optimizer = torch.optim.Adam([quantizer.shift], lr=1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().mul(1e3).backward()
        optimizer.step()
    assert float((quantizer(x).detach() - x).square().mean()) < 1.1 * best


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["dense", "depthwise", "head"])
def test_weights_are_rounded_as_in_the_graph(kind: str, dims: int) -> None:
    torch.manual_seed(1)
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    transposed = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims]
    layer = {
        "dense": lambda: conv(6, 9, 3),
        "depthwise": lambda: conv(8, 8, 5, groups=8),
        "head": lambda: transposed(5, 5, 1),
    }[kind]()
    weight = layer.weight.detach()
    rounded = WeightRounder(layer, 63)(weight)
    plain = weight.transpose(0, 1) if kind == "head" else weight
    integers, scale = quantize_weight(plain.numpy(), 63)
    expected = torch.from_numpy(integers * scale.reshape(-1, *(1,) * (weight.dim() - 1)))
    torch.testing.assert_close(
        rounded.transpose(0, 1) if kind == "head" else rounded, expected.float(), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_transposed_depthwise_weights_are_rounded_parity_by_parity(kernel: int) -> None:
    torch.manual_seed(2)
    layer = nn.ConvTranspose3d(4, 4, kernel, stride=2, padding=kernel // 2, groups=4)
    weight = layer.weight.detach()
    parts = parity_weights(WeightRounder(layer, 63)(weight))
    for (rounded, _), (exact, _) in zip(parts, parity_weights(weight), strict=True):
        integers, scale = quantize_weight(exact.numpy(), 63)
        expected = torch.from_numpy(integers * scale.reshape(-1, 1, 1, 1, 1)).float()
        torch.testing.assert_close(rounded, expected, rtol=0, atol=1e-7)


def test_weights_learn_as_if_they_were_not_rounded() -> None:
    layer = nn.Conv3d(2, 2, 1)
    weight = layer.weight.detach().clone().requires_grad_(True)
    WeightRounder(layer, 63)(weight).backward(torch.full_like(weight, 3.0))
    assert weight.grad is not None
    assert (weight.grad == 3.0).all()


def test_a_channel_of_zeros_stays_zero() -> None:
    layer = nn.Conv3d(2, 2, 1)
    weight = torch.zeros_like(layer.weight)
    assert (WeightRounder(layer, 63)(weight) == 0).all()
