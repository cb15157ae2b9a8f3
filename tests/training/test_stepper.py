"""One step of the optimiser is that of the recipe: gradients clipped to a norm, AdamW with its epsilon and decay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mednext_edge.training.objective import Batch, Network, Outcome
from mednext_edge.training.stepper import Stepper

from .blobs import plan

SHAPE = (2, 1, 16, 16, 32)


def squares(net: Network, batch: Batch) -> Outcome:
    logits = net(batch.images)
    assert isinstance(logits, Tensor)
    return Outcome(100 * logits.square().mean(), logits)


@pytest.mark.parametrize("clip", [0.5, 1e6])
def test_clips_and_steps_as_adamw_does(clip: float) -> None:
    torch.manual_seed(0)
    chosen = plan(clip=clip, eps=1e-2, weight_decay=0.1, learning_rate=0.3)
    net = nn.Conv3d(1, 3, 1)
    before = [p.detach().clone() for p in net.parameters()]
    images, labels = torch.randn(SHAPE), torch.randint(0, 3, SHAPE).float()
    Stepper(net, chosen, "cpu").step(squares, images, labels, 0)
    reference = nn.Conv3d(1, 3, 1)
    with torch.no_grad():
        for p, value in zip(reference.parameters(), before, strict=True):
            p.copy_(value)
    (100 * reference(images).square().mean()).backward()
    grads = [p.grad for p in reference.parameters() if p.grad is not None]
    norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
    assert norm > 2  # so that 0.5 clips
    for p, g, now in zip(before, grads, net.parameters(), strict=True):
        g = g * min(1.0, clip / float(norm))
        # Loshchilov and Hutter 2019, step 1: both averages are the gradient's once their bias is taken out.
        expected = p * (1 - 0.3 * 0.1) - 0.3 * g / (g.abs() + 1e-2)
        assert_close(now.detach(), expected, rtol=1e-5, atol=1e-6)
