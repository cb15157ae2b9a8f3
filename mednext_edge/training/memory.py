"""How much memory a training step takes: estimated before it runs, and measured after."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from mednext_edge.models.families import build
from mednext_edge.task import ModelSpec
from mednext_edge.training.loss import SupervisedLoss
from mednext_edge.training.objective import Batch, Classified, Supervised
from mednext_edge.training.plan import plan_patch

OF_PARAMETERS = 4 * 4
"""Bytes a parameter: its value, its gradient and AdamW's two moments, in float32."""
HALF = 0.6
"""Part of the activations' bytes that autocast to 16 bits leaves; norms and the loss stay in float32."""
LEAST_BATCH = 2
BATCH_SHARE = 0.05
"""Most of a data set's voxels that one batch may hold."""
MOST_VOXELS = 128**3
SHARE = {"cuda": 0.85, "cpu": 0.5}
"""Part of the free memory that a plan may use: a CPU's is shared with everything else."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes.

    Attributes:
        fixed: weights, gradients and the optimiser's state.
        sample: kept for the backward pass of one patch, with what is in flight.
    """

    fixed: int
    sample: int

    def of(self, batch: int) -> int:
        """A step that has `batch` patches in memory at once."""
        return self.fixed + batch * self.sample


def step_memory(
    spec: ModelSpec,
    patch: tuple[int, ...],
    *,
    half: bool,
    checkpointed: bool,
    ema: bool,
    rounded: Collection[str] = (),
) -> StepMemory:
    """The memory of a step, from its own graph: PyTorch runs it on shapes alone and tells what it keeps.

    Args:
        half: autocast to 16 bits.
        checkpointed: activations are computed again.
        ema: averaged weights are kept too.
        rounded: names of the layers that train in INT8: they keep their rounded inputs besides those as they come; and
            there is a teacher.
    """
    with torch.device("meta"):
        net = build(spec).train()
        x = torch.empty(1, spec.in_channels, *patch)
    if checkpointed and hasattr(net, "checkpoint_gradients"):
        net.checkpoint_gradients = True  # type: ignore[assignment]
    kept: dict[int, Tensor] = {}
    largest = twice = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal largest
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor
            largest = max(largest, tensor.untyped_storage().nbytes())
        return tensor

    def keep_rounded(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal twice
        twice += args[0].nbytes

    for name in rounded:
        net.get_submodule(name).register_forward_pre_hook(keep_rounded)
    # Views of one tensor count once: storages are told apart, not tensors.
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        dense = spec.kind == "segmentation"
        objective = Supervised(SupervisedLoss()) if dense else Classified()
        objective(net, Batch(x, torch.empty(1, 1, *(patch if dense else ()), device="meta"), 0))
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    parameters = sum(p.numel() for p in net.parameters())
    activations = (saved + (0 if checkpointed else twice) + 3 * largest) * (HALF if half else 1)
    if checkpointed:
        # One block at a time is computed again, the widest one of the first level.
        activations += (16 if rounded else 8) * largest * (HALF if half else 1)
    teacher = parameters * 4 if rounded else 0
    return StepMemory(parameters * (OF_PARAMETERS + 4 * ema) + teacher, int(activations))


def free_memory(device: str) -> int:
    """Bytes that a plan may use on a device."""
    kind = torch.device(device).type
    free = torch.cuda.mem_get_info(torch.device(device))[0] if kind == "cuda" else psutil.virtual_memory().available
    return int(free * SHARE.get(kind, SHARE["cpu"]))


class PeakOfStep:
    """The highest memory of a run so far, in 1e6 bytes: the tensors' on CUDA, the whole process's elsewhere."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._process, self._peak = psutil.Process(), 0
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def mb(self) -> float:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 1e6
        info = self._process.memory_info()
        # Windows keeps the peak itself; elsewhere what is resident now is the nearest there is.
        self._peak = max(self._peak, getattr(info, "peak_wset", info.rss))
        return self._peak / 1e6


def plan_size(
    shapes: Sequence[tuple[int, ...]],
    memory: StepMemory,
    measured_at: tuple[int, ...],
    budget: int,
    *,
    batch: int | None,
    parts: int,
    cases: int,
    grow: bool,
) -> tuple[tuple[int, ...], int]:
    """Patch and batch for images of these shapes and this memory, by nnU-Net's order: patch first, then batch.

    Args:
        shapes: spatial, after preprocessing.
        memory: of a step with patches of size `measured_at`.
        budget: bytes.
        batch: wanted; None plans it, 2 or more.
        parts: into which a batch is cut, over all processes.
        cases: training images in all.
        grow: let the batch grow until the memory or 5 % of all voxels are used, as on a GPU; on a CPU a step takes
            as much longer.

    Returns:
        Patch, and a batch that `parts` divides.
    """
    a_voxel = memory.sample / math.prod(measured_at)
    at_once = max(1, (batch or LEAST_BATCH) // parts)
    room = max(0, budget - memory.fixed)
    patch = plan_patch(shapes, voxels=min(MOST_VOXELS, int(room / (at_once * a_voxel))))
    if batch is not None:
        return patch, batch
    voxels = math.prod(patch)
    found = LEAST_BATCH
    if grow:
        all_voxels = cases * float(np.mean([math.prod(shape) for shape in shapes]))
        found = max(found, min(int(room / (voxels * a_voxel)) * parts, int(BATCH_SHARE * all_voxels / voxels)))
    return patch, max(parts, found // parts * parts)
