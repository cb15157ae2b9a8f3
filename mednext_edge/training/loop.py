"""The training loop: resumable after a kill, validated by sliding window, its best weights returned."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from mednext_edge.data.dataset import Case, Dataset
from mednext_edge.data.recipe import Prepared, prepare
from mednext_edge.errors import CheckpointError, DataError
from mednext_edge.models.loaded import LoadedModel, Source
from mednext_edge.task import Task
from mednext_edge.training.batches import BatchSource
from mednext_edge.training.loss import SupervisedLoss
from mednext_edge.training.objective import Objective, Supervised
from mednext_edge.training.plan import TrainingPlan
from mednext_edge.training.start import start_network
from mednext_edge.training.state import BEST, LAST, Counters, RunFolder
from mednext_edge.training.stepper import Stepper
from mednext_edge.training.team import ALONE, Team
from mednext_edge.training.validation import validate_dice


@dataclass(frozen=True)
class Progress:
    """One optimiser step: what was done, what is left, how good it is.

    `dice` is the mean foreground Dice of the step's own patches, a noisy hint; `validation` is the
    Dice per class on whole validation images, on the steps that end a validated epoch.
    """

    step: int
    total: int
    loss: float
    dice: float
    rate: float
    seconds: float
    validation: dict[str, float] | None = None


def train(
    dataset: Dataset,
    task: Task,
    plan: TrainingPlan,
    out: Path,
    *,
    net: nn.Module | None = None,
    objective: Objective | None = None,
    resume: bool = False,
    device: str = "cpu",
    team: Team = ALONE,
    on_step: Callable[[Progress], None] = lambda _: None,
) -> LoadedModel:
    """Train a network and return its best state in eval mode.

    A killed run goes on with `resume` from the last whole epoch, with the same patches in the same order.

    Args:
        dataset: cases with labels.
        task: what is trained, from `make_task`.
        plan: the recipe.
        out: run folder, see `training.state`.
        net: the network to train, as it starts, see `training.start`; random weights of the task's network by
            default. It is changed in place. Resuming needs one of the same structure.
        objective: gives the loss of a batch; Dice and cross-entropy by default.
        resume: go on with the run in `out`.
        device: torch device.
        team: the processes of this run, see `training.team`.
        on_step: called after every optimiser step.

    Raises:
        UsageError: the folder already holds a run and `resume` is off, or its plan differs; a batch that cannot be
            shared by the processes.
        DataError: no usable case, a loss that is not finite, or a disk that takes no checkpoint.
        CheckpointError: the saved state is damaged or of another network.
    """
    plan.check_split(team.size)
    device = team.device(device)
    folder = RunFolder(out, plan, resume=resume)
    if net is None:
        net = start_network(task, plan.seed)
    if hasattr(net, "checkpoint_gradients"):
        net.checkpoint_gradients = plan.checkpoint_gradients  # type: ignore[assignment]
    stepper = Stepper(net.to(device).train(), plan, device, team)
    if objective is None:
        objective = Supervised(SupervisedLoss(batch_dice=plan.batch_dice, pool=team.sum_with_gradient))
    source = BatchSource([_prepare(case, task) for case in dataset.training], plan, team)
    team.barrier()  # every process has looked at the folder before the first one changes it
    if team.leads:
        folder.begin()
    counters = _resume(folder, stepper)

    clock = time.monotonic() - counters.seconds
    losses: list[float] = []
    for images, labels in source.stream(counters.step, plan.total_steps):
        rate = plan.rate_at(counters.step)
        loss, dice = stepper.step(objective, images, labels, counters.step)
        counters.step += 1
        losses.append(loss)
        if not math.isfinite(loss):
            raise DataError(f"the loss became {loss} at step {counters.step}; lower --lr, or use --amp fp32")

        validation = None
        if counters.step % plan.steps == 0:
            epoch = counters.step // plan.steps
            if dataset.validation and (epoch % plan.validate_every == 0 or counters.step == plan.total_steps):
                validation = validate_dice(stepper.judged, task, dataset.validation, device, team)
            counters.seconds = time.monotonic() - clock
            if team.leads:
                entry = {"step": counters.step, "epoch": epoch, "loss": float(np.mean(losses)), "rate": rate}
                _save(folder, stepper, counters, entry, validation)
            losses.clear()
        on_step(
            Progress(
                step=counters.step,
                total=plan.total_steps,
                loss=loss,
                dice=dice,
                rate=rate,
                seconds=time.monotonic() - clock,
                validation=validation,
            )
        )

    team.barrier()  # the last checkpoint is written
    return _finished(net, task, folder, plan)


def _resume(folder: RunFolder, stepper: Stepper) -> Counters:
    state, counters = folder.restore()
    if state is not None:
        try:
            stepper.load(state)
        except CheckpointError as error:
            raise CheckpointError(f"{folder.path / LAST}: {error}; choose another --out to start anew") from error
    return counters


def _save(
    folder: RunFolder,
    stepper: Stepper,
    counters: Counters,
    entry: Mapping[str, object],
    validation: dict[str, float] | None,
) -> None:
    """What a finished epoch leaves: the best weights where it was best, a line in the log, the last state."""
    found = [value for value in (validation or {}).values() if not math.isnan(value)]
    mean = float(np.mean(found)) if found else None
    if mean is not None and mean > counters.best:
        counters.best = mean
        folder.save(BEST, stepper.state(), counters)
    folder.log({**entry, "seconds": counters.seconds, "dice": mean, "dice_per_class": validation})
    folder.save(LAST, stepper.state(), counters)


def _finished(net: nn.Module, task: Task, folder: RunFolder, plan: TrainingPlan) -> LoadedModel:
    name = BEST if plan.keep == "best" else LAST
    net.load_state_dict(folder.weights(name))
    net = net.cpu().eval()
    if hasattr(net, "do_ds"):
        net.do_ds = False  # type: ignore[assignment]
    return LoadedModel(net=net, task=task, source=Source(format="mednext-edge run", file=name, sha256=""))


def _prepare(case: Case, task: Task) -> Prepared:
    if case.labels is None:
        raise DataError(f"training case {case.name} has no labels")
    prepared = prepare(case.image(), task.preprocessing, case.labels())
    assert prepared.labels is not None
    if int(prepared.labels.max(initial=0)) >= task.model.classes:
        raise DataError(f"{case.name} holds the label {int(prepared.labels.max())}; the dataset names {task.labels}")
    return prepared
