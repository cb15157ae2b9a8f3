"""INT8 in floating point: numbers rounded as the engine will round them, with gradients to learn by.

Jain et al., "Trained Quantization Thresholds" (arXiv 1903.08066); Esser et al., "Learned Step Size Quantization"
(arXiv 1902.08153). Gradients pass straight through the rounding and stop at what is clipped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from mednext_edge.fusion.depthwise import DepthwiseConv
from mednext_edge.ops import cpu_library
from mednext_edge.quantize.flavour import LEVELS
from mednext_edge.quantize.kinds import TRANSPOSED

# Adam changes any parameter by about the learning rate a step, 1e-4 to 1e-3; a threshold that should be half of what
# it is would take thousands of steps. Counted in units of a hundred octaves, it takes some dozens.
OCTAVES = 100.0


class _Rounded(torch.autograd.Function):
    """x and threshold -> the nearest of the levels -127..127 times threshold / 127; beyond the threshold, the last one.

    Keeps its input alone for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(x, threshold)
        return torch.fake_quantize_per_tensor_affine(x, float(threshold) / LEVELS, 0, -LEVELS, LEVELS)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,), (x, threshold) = grads, ctx.saved_tensors
        if _is_dense(x) and grad.dtype == x.dtype == torch.float32 and x.device.type == "cpu":
            grad_x, slope = torch.empty_like(x), x.new_empty((), dtype=torch.float64)
            grad = grad if grad.stride() == x.stride() else torch.empty_like(x).copy_(grad)
            cpu_library.call("fake_quantize_backward", x.numel(), grad, x, float(threshold), grad_x, slope)
            return grad_x, slope.to(threshold.dtype)
        inside = x.abs() <= threshold
        # How the result follows the scale: inside by what rounding adds to the level, beyond by the last level.
        level = x * (LEVELS / threshold)
        slope = torch.where(inside, level.round() - level, LEVELS * level.sign())
        return grad * inside, (grad * slope).sum() / LEVELS


def _is_dense(x: Tensor) -> bool:
    """Whether its values fill a piece of memory, in one of the two orders that convolutions know."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim(), torch.contiguous_format)
    return x.numel() > 0 and (x.is_contiguous() or x.is_contiguous(memory_format=last))


class InputQuantizer(nn.Module):
    """Rounds the input of a layer; its threshold is learnt, from the calibrated one on.

    Args:
        threshold: |x| that becomes 127, above 0.
    """

    start: Tensor

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.register_buffer("start", torch.tensor(threshold, dtype=torch.float32))
        # A parameter near 0, so that weight decay draws the threshold towards the calibrated one.
        self.shift = nn.Parameter(torch.zeros(()))

    @property
    def threshold(self) -> Tensor:
        return self.start * torch.exp2(OCTAVES * self.shift)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            rounded: Tensor = _Rounded.apply(x.float(), self.threshold)  # type: ignore[no-untyped-call]
        return rounded.to(x.dtype)


class WeightRounder(nn.Module):
    """A parametrisation: weights as INT8 holds them, with one scale for each output channel as `qdq.quantize_weight`.

    Args:
        conv: whose weights they are; of transposed depthwise ones every parity has scales of its own, as in
            the parity form.
        levels: largest integer.
    """

    def __init__(self, conv: nn.Module, levels: int) -> None:
        super().__init__()
        self.levels = levels
        if isinstance(conv, DepthwiseConv):
            transposed, depthwise = conv.transposed, conv.weight.shape[0] > 1
        else:
            transposed, depthwise = isinstance(conv, TRANSPOSED), cast(int, conv.groups) > 1
        self.parities = transposed and depthwise
        self.axis = 1 if transposed and not depthwise else 0

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            rounded = weight.double()  # as the graph's weights are rounded, for nothing may fall on the other side
            for part in self._parts(rounded):
                others = [axis for axis in range(part.dim()) if axis != self.axis]
                peak = part.abs().amax(others, keepdim=True)
                scale = (torch.where(peak > 0, peak, 1.0) / self.levels).float()
                part.copy_((part / scale).round().clamp(-self.levels, self.levels) * scale)
            rounded = rounded.to(weight.dtype)
        return rounded + (weight - weight.detach())

    def _parts(self, weight: Tensor) -> Iterator[Tensor]:
        """Views of the weights that have their own scales."""
        if not self.parities:
            yield weight
            return
        for first in itertools.product((0, 1), repeat=weight.dim() - 2):
            part = weight[(slice(None), slice(None), *(slice(n, None, 2) for n in first))]
            if part.numel():
                yield part
