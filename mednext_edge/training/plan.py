"""Everything that decides a training run, as one frozen record that is saved with it.

Defaults are the authors' recipe: AdamW (lr 1e-3, weight decay 3e-5, eps 1e-4), polynomial decay with
power 0.9, gradient norm clipped at 12, one third of the patches on foreground, deep supervision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from mednext_edge.errors import UsageError
from mednext_edge.registry import unknown_name

Amp = Literal["auto", "fp32", "bf16", "fp16"]
Keep = Literal["best", "last"]
EXECUTION = frozenset({"accumulate", "checkpoint_gradients", "compile", "fused", "workers"})
"""Fields that a resumed run may change."""


@dataclass(frozen=True)
class TrainingPlan:
    """One training run.

    Attributes:
        family, variant, kernel, grn: the network, see `models.families.Request`; None leaves a choice to the family.
        patch: training and inference patch, (z, y, x), multiples of 16.
        batch: patches a step.
        epochs, steps: pseudo-epochs and optimiser steps in each.
        validate_every: epochs between validations; the last epoch always validates.
        foreground: share of the patches that are centred on a foreground voxel.
        amp: `auto` is bf16 where the device computes in it, else fp32.
        augment: the augmentation set of nnU-Net; off for debugging.
        mirror_axes: spatial axes whose flips the data allows; used in training and in inference.
        seed: of weights, patches and augmentation; every step draws from (seed, step) alone.
        start: `random`, or where the first weights are from, see `training.start.start_name`.
        ema: decay of the averaged weights, which are then validated and returned; 0 for none.
        keep: the weights that a run returns: `best` by validation, or `last` (nnU-Net's choice).
        accumulate: parts into which each batch is cut to save memory; their gradients are added up.
        checkpoint_gradients: compute activations again in the backward pass instead of keeping them.
        compile: the network through torch.compile.
        fused: blocks and depthwise convolutions through our own operators, which on CUDA run our kernels.
        workers: processes that prepare batches; 0 for a thread of this one.

    The last five change how fast and in how much memory a run computes, not what (up to rounding), so that a run may
    be resumed with others; see `EXECUTION`.
    """

    family: str = "mednext"
    variant: str | None = "S"
    kernel: int | None = 3
    grn: bool = False
    patch: tuple[int, ...] = (128, 128, 128)
    batch: int = 2
    epochs: int = 1000
    steps: int = 250
    validate_every: int = 10
    learning_rate: float = 1e-3
    weight_decay: float = 3e-5
    eps: float = 1e-4
    power: float = 0.9
    clip: float = 12.0
    foreground: float = 1 / 3
    batch_dice: bool = False
    amp: Amp = "auto"
    augment: bool = True
    mirror_axes: tuple[int, ...] = (0, 1, 2)
    seed: int = 0
    start: str = "random"
    ema: float = 0.0
    keep: Keep = "best"
    accumulate: int = 1
    checkpoint_gradients: bool = False
    compile: bool = False
    fused: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch", tuple(self.patch))
        object.__setattr__(self, "mirror_axes", tuple(self.mirror_axes))
        if min(self.batch, self.epochs, self.steps, self.validate_every) < 1:
            raise UsageError("batch, epochs, steps and validate-every must be at least 1")
        if any(n % 16 or n < 16 for n in self.patch) or max(self.patch, default=0) < 32:
            raise UsageError(f"patch {self.patch}: every side must be a multiple of 16, and one at least 32")
        if not set(self.mirror_axes) <= set(range(len(self.patch))):
            raise UsageError(f"mirror axes {self.mirror_axes}: a patch of {len(self.patch)} sides has axes from 0 on")
        if not 0 <= self.foreground <= 1:
            raise UsageError(f"foreground share {self.foreground} is not within 0..1")
        for name in ("learning_rate", "eps", "clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UsageError(f"found {name.replace('_', ' ')} {getattr(self, name)}; expected a number above 0")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UsageError(f"found weight decay {self.weight_decay}; expected 0 or more")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"found seed {self.seed}; expected 0 to {2**32 - 1}")
        if self.amp not in get_args(Amp):
            raise unknown_name("precision", self.amp, get_args(Amp))
        if self.keep not in get_args(Keep):
            raise unknown_name("weights to keep", self.keep, get_args(Keep))
        if not 0 <= self.ema < 1:
            raise UsageError(f"found an EMA decay of {self.ema}; expected 0 (none) or a number below 1, such as 0.999")
        if self.workers < 0:
            raise UsageError(f"found {self.workers} workers; expected 0 or more")
        self.check_split(1)

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps

    def check_split(self, processes: int) -> None:
        """That every process gets the same number of patches, in equal parts.

        Raises:
            UsageError: it does not.
        """
        if self.accumulate < 1 or self.batch % (processes * self.accumulate):
            raise UsageError(
                f"a batch of {self.batch} cannot be cut into {self.accumulate} parts for {processes} processes each; "
                "choose a --batch that --accumulate times the number of processes divides"
            )

    def rate_at(self, step: int) -> float:
        """Learning rate of an optimiser step: polynomial decay, constant within an epoch."""
        epoch = min(step // self.steps, self.epochs - 1)
        return float(self.learning_rate * (1 - epoch / self.epochs) ** self.power)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_patch(shapes: Sequence[tuple[int, ...]], *, voxels: int = 128**3, divisor: int = 16) -> tuple[int, ...]:
    """A patch for images of these shapes: the median image, rounded up, shrunk along its longest side to fit.

    Args:
        shapes: spatial shapes after preprocessing.
        voxels: most voxels a patch may hold.
        divisor: every side becomes a multiple of this.

    Raises:
        UsageError: no shape was given.
    """
    if not shapes:
        raise UsageError("no image shape to plan a patch from")
    median = [sorted(sizes)[len(sizes) // 2] for sizes in zip(*shapes, strict=True)]
    patch = [max(divisor, math.ceil(n / divisor) * divisor) for n in median]
    while math.prod(patch) > voxels and max(patch) > divisor:
        longest = max(range(len(patch)), key=lambda axis: patch[axis])
        patch[longest] -= divisor
    if max(patch) < 2 * divisor:
        # The bottleneck needs more than one voxel for its instance norm.
        patch[0] = 2 * divisor
    return tuple(patch)
