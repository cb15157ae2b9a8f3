"""Patch and batch of a run, from the images and the memory of the device."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial

from mednext_edge.data.dataset import Dataset
from mednext_edge.data.recipe import prepare
from mednext_edge.models.families import FAMILIES
from mednext_edge.task import ModelSpec, Preprocessing
from mednext_edge.training.memory import StepMemory, free_memory, plan_size, step_memory
from mednext_edge.training.plan import TrainingPlan
from mednext_edge.training.precision import choose_amp
from mednext_edge.training.task import LOOKED_AT, make_task

LOOKED = {2: (64, 64), 3: (32, 32, 32)}
"""Patches at which the memory of a voxel is taken."""


@dataclass(frozen=True)
class Sized:
    """A plan, the bytes its step is estimated to take in one process, and the bytes it may."""

    plan: TrainingPlan
    memory: StepMemory
    needed: int
    usable: int

    @property
    def memory_json(self) -> dict[str, int]:
        return {"estimated_bytes": self.needed, "usable_bytes": self.usable}


def size_run(
    dataset: Dataset,
    recipe: Preprocessing,
    planned: Callable[..., TrainingPlan],
    *,
    size: tuple[int, ...] | None,
    batch: int | None,
    device: str,
    processes: int = 1,
    spec: ModelSpec | None = None,
    rounded: Collection[str] = (),
) -> Sized:
    """The plan with its patch and batch.

    Args:
        dataset: at most 25 of its training images are read where `size` is not given.
        recipe: their preprocessing.
        planned: the plan, still without `patch`, `batch`, `mirror_axes` and `batch_dice`.
        size, batch: what is wanted; None plans it.
        device: whose memory counts.
        processes: that share a batch.
        spec: the network, where it is not the plan's.
        rounded: names of its layers that train in INT8.

    Raises:
        UsageError: a plan that cannot be.
    """
    dims = len(size) if size else 3
    trial = planned(patch=LOOKED[dims], batch=processes * planned.keywords["accumulate"], mirror_axes=())  # type: ignore[attr-defined]
    half = choose_amp(trial.amp, device) is not None
    if spec is None:
        spec = make_task(dataset, trial, recipe).model
    step = partial(step_memory, spec, half=half, checkpointed=trial.checkpoint_gradients, ema=trial.ema > 0)
    memory = step(patch=trial.patch, rounded=rounded)
    # GPUs are one a process; the memory of a CPU is shared by all of them.
    usable = free_memory(device) // (1 if device.startswith("cuda") else processes)
    parts = processes * trial.accumulate
    shapes = [size] if size else _shapes(dataset, recipe)
    patch, chosen = plan_size(
        shapes,
        memory,
        trial.patch,
        usable,
        batch=batch,
        parts=parts,
        cases=len(dataset.training),
        grow=device.startswith("cuda") and size is None,
    )
    patch = size or patch
    axes = tuple(range(len(patch)))
    pooled = len(axes) == 2 and FAMILIES[trial.family].batch_dice
    plan = replace(trial, patch=patch, batch=chosen, mirror_axes=axes, batch_dice=pooled)
    whole = step(patch=patch, rounded=rounded)
    return Sized(plan, whole, whole.of(max(1, plan.batch // parts)), usable)


def _shapes(dataset: Dataset, recipe: Preprocessing) -> list[tuple[int, ...]]:
    some = dataset.training[:: max(1, len(dataset.training) // LOOKED_AT)][:LOOKED_AT]
    shapes = []
    for case in some:
        with case.named("training"):
            shapes.append(prepare(case.image(), recipe).image.shape[1:])
    return shapes
