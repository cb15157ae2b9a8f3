"""The loss against nnU-Net's formula, written out in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mednext_edge.training.loss import SupervisedLoss

CLASSES = 3


def by_hand(outputs: list[Tensor], target: Tensor, batch_dice: bool) -> Tensor:
    """sum_i w_i (1 - Dice of the foreground classes + cross-entropy), w_i = 2^-i over their sum."""
    weights = torch.tensor([2.0**-i for i in range(len(outputs))], dtype=torch.float64)
    weights /= weights.sum()
    total = torch.zeros((), dtype=torch.float64)
    for i, logits in enumerate(outputs):
        labels = target[:, 0].long()
        for axis in range(1, labels.dim()):
            labels = labels.index_select(axis, torch.arange(0, labels.shape[axis], 2**i))
        log_p = logits - logits.exp().sum(1, keepdim=True).log()
        p = log_p.exp()
        truth = torch.stack([(labels == c).double() for c in range(CLASSES)], 1)
        axes = tuple(range(2, logits.dim()))
        overlap, found, there = ((t.sum(axes)) for t in (p * truth, p, truth))
        if batch_dice:
            overlap, found, there = (t.sum(0, keepdim=True) for t in (overlap, found, there))
        dice = (2 * overlap + 1e-5) / (found + there + 1e-5)
        entropy = -(log_p * truth).sum(1).mean()
        total = total + weights[i] * ((1 - dice[:, 1:]).mean() + entropy)
    return total


def example(dims: int, heads: int) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(dims)
    size = (16, 8, 24)[:dims]
    outputs = [
        2 * torch.randn((2, CLASSES, *(n >> i for n in size)), generator=generator, dtype=torch.float64)
        for i in range(heads)
    ]
    target = torch.randint(0, CLASSES, (2, 1, *size), generator=generator).double()
    target[1][target[1] == 2] = 0  # a class that one sample does not have
    return outputs, target


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_value_and_gradient(dims: int, heads: int, batch_dice: bool) -> None:
    outputs, target = example(dims, heads)
    ours, theirs = ([o.clone().requires_grad_() for o in outputs] for _ in range(2))
    found = SupervisedLoss(batch_dice=batch_dice)([o.float() for o in ours], target.float())
    expected = by_hand(theirs, target, batch_dice)
    assert found.item() == pytest.approx(expected.item(), rel=2e-6)
    found.backward()
    expected.backward()  # type: ignore[no-untyped-call]
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-7)


def test_weights_halve_and_sum_to_one() -> None:
    """Equal heads cost what one costs."""
    target = torch.zeros(1, 1, 16, 16)
    outputs = [torch.zeros(1, CLASSES, 16 >> i, 16 >> i) for i in range(4)]
    # Without foreground the Dice of a head of zeros depends on its size by less than 1e-4.
    assert SupervisedLoss()(outputs, target).item() == pytest.approx(SupervisedLoss()(outputs[:1], target).item(), 1e-4)
    shares = []
    for i in range(4):
        changed = [o + (j == i) * torch.tensor([4.0, 0, 0]).view(1, 3, 1, 1) for j, o in enumerate(outputs)]
        shares.append((SupervisedLoss()(outputs, target) - SupervisedLoss()(changed, target)).item())
    for larger, smaller in itertools.pairwise(shares):
        assert larger == pytest.approx(2 * smaller, rel=1e-2)


def test_a_perfect_answer_costs_nothing() -> None:
    _, target = example(3, 1)
    logits = torch.stack([(target[:, 0] == c).float() * 60 for c in range(CLASSES)], 1)
    assert SupervisedLoss()([logits], target.float()).item() == pytest.approx(0, abs=1e-6)


def test_half_precision_logits_are_taken_as_float32() -> None:
    outputs, target = example(3, 2)
    half = [o.half() for o in outputs]
    loss = SupervisedLoss()(half, target.float())
    assert loss.isfinite()
    assert loss.item() == SupervisedLoss()([h.float() for h in half], target.float()).item()
