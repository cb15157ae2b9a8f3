"""The training loop: resumable after a kill, validated by sliding window, its best weights returned."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from mednext_edge.data.dataset import Case, Dataset
from mednext_edge.data.recipe import Prepared, prepare
from mednext_edge.errors import CheckpointError, DataError
from mednext_edge.models.loaded import LoadedModel, Source
from mednext_edge.task import Task
from mednext_edge.training.allocator import freed_memory_kept
from mednext_edge.training.batches import BatchSource, CategorySource
from mednext_edge.training.board import Board, check_tensorboard
from mednext_edge.training.form import training_form
from mednext_edge.training.loss import SupervisedLoss
from mednext_edge.training.memory import PeakOfStep
from mednext_edge.training.objective import Classified, Objective, Supervised
from mednext_edge.training.plan import TrainingPlan
from mednext_edge.training.start import start_network
from mednext_edge.training.state import BEST, LAST, Counters, RunFolder
from mednext_edge.training.stepper import Stepper
from mednext_edge.training.team import ALONE, Team
from mednext_edge.training.validation import validate_dice, validate_sensitivity

SCORES = {
    "segmentation": ("dice", "dice_per_class"),
    "classification": ("balanced_accuracy", "sensitivity_per_class"),
}
"""What a log calls the score that decides and its parts, by the kind of network."""


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


@freed_memory_kept()
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
    tensorboard: bool = False,
    on_step: Callable[[Progress], None] = lambda _: None,
    on_case: Callable[[int, int], None] = lambda done, total: None,
    on_note: Callable[[str], None] = lambda _: None,
) -> LoadedModel:
    """Train a network and return its best state in eval mode.

    A killed run goes on with `resume` from the last whole epoch, with the same patches in the same order. While it
    runs, the process keeps the memory of freed tensors (`training.allocator`).

    Args:
        dataset: cases with labels.
        task: what is trained, from `make_task`.
        plan: the recipe.
        out: run folder, see `training.state`.
        net: the network to train, as it starts, see `training.start`; random weights of the task's network by
            default. It gets the trained weights. Resuming needs one of the same structure.
        objective: gives the loss of a batch; Dice and cross-entropy by default.
        resume: go on with the run in `out`.
        device: torch device.
        team: the processes of this run, see `training.team`.
        tensorboard: also log to the folder `tensorboard` in `out`.
        on_step: called after every optimiser step.
        on_case: called as (cases read, cases in all) before the first step.
        on_note: told of what is unusual in the data.

    Raises:
        UsageError: the folder already holds a run and `resume` is off, or its plan differs; a batch that cannot be
            shared by the processes.
        DataError: a case that cannot be used, no foreground in any, a loss that is not finite, or a disk that takes
            no checkpoint. All cases are read before the first step, those for validation too.
        TargetUnavailableError: `tensorboard` without the package.
        CheckpointError: the saved state is damaged or of another network.
    """
    plan.check_split(team.size)
    dense = task.model.kind == "segmentation"
    device = team.device(device)
    folder = RunFolder(out, plan, resume=resume)
    if net is None:
        net = start_network(task, plan.seed)
    regions = task.values_by_output
    stepper = Stepper(training_form(net, plan, device, on_note), plan, device, team, regions)
    if objective is None:
        supervised = SupervisedLoss(regions=regions, batch_dice=plan.batch_dice, pool=team.sum_with_gradient)
        objective = Supervised(supervised) if dense else Classified()
    if tensorboard:
        check_tensorboard()
    draw = BatchSource if dense else CategorySource
    source = draw(_prepare_all(dataset, task, team, on_case), plan, team)
    pooled = plan.batch_dice and isinstance(objective, Supervised)
    of_parts = _of_parts(stepper.net, plan, team, pooled=pooled)
    for note in (*source.notes(task.labels, validated=bool(dataset.validation)), *of_parts):
        on_note(note)
    team.barrier()  # every process has looked at the folder before the first one changes it
    if team.leads:
        folder.begin(task, dataset)
    counters = _resume(folder, stepper)
    board = Board(out, folder.history()) if tensorboard and team.leads else None
    peak = PeakOfStep(device)

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
                validate = validate_dice if dense else validate_sensitivity
                try:
                    validation = validate(stepper.judged, task, dataset.validation, device, team)
                except DataError as error:
                    kept = f"the first {epoch - 1} epochs are saved" if epoch > 1 else "no epoch is saved yet"
                    raise DataError(
                        f"{error}; this was met when epoch {epoch} was validated, {kept}: repair the file and go on "
                        "with --resume"
                    ) from error
            counters.seconds = time.monotonic() - clock
            if team.leads:
                entry = {"step": counters.step, "epoch": epoch, "loss": float(np.mean(losses)), "rate": rate}
                named = SCORES[task.model.kind]
                saved = _save(folder, stepper, counters, {**entry, "memory_mb": peak.mb()}, validation, named)
                if board is not None:
                    board.epoch(saved)
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

    if board is not None:
        board.close()
    team.barrier()  # the last checkpoint is written
    return _finished(net, task, folder, plan)


def _of_parts(net: nn.Module, plan: TrainingPlan, team: Team, *, pooled: bool) -> list[str]:
    """What a batch in parts changes: norms over the batch see one part at a time, and are not synchronised; the Dice of
    a batch, where it is `pooled`, is that of all processes, but not of parts that come one after the other."""
    parts = plan.accumulate * team.size
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    # Those that keep their statistics while INT8 is trained are never in training mode.
    normed = any(isinstance(part, norms) and part.training for part in net.modules())
    otherwise = f"of the {plan.batch} patches of a batch at a time: it trains otherwise than with a batch in one part"
    notes = []
    if parts > 1 and normed:
        notes.append(f"this network has batch norms, which see {plan.batch // parts} {otherwise}")
    if plan.accumulate > 1 and pooled:
        notes.append(f"the Dice in the loss is that of {plan.batch // plan.accumulate} {otherwise}")
    return notes


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
    names: tuple[str, str],
) -> dict[str, object]:
    """What a finished epoch leaves: the best weights where it was best, the line in the log, the last state."""
    found = [value for value in (validation or {}).values() if not math.isnan(value)]
    mean = float(np.mean(found)) if found else None
    if mean is not None and mean > counters.best:
        counters.best = mean
        folder.save(BEST, stepper.state(), counters)
    line = {**entry, "seconds": counters.seconds, names[0]: mean, names[1]: validation}
    folder.log(line)
    folder.save(LAST, stepper.state(), counters)
    return line


def _finished(net: nn.Module, task: Task, folder: RunFolder, plan: TrainingPlan) -> LoadedModel:
    name = BEST if plan.keep == "best" else LAST
    net.load_state_dict(folder.weights(name))
    net = net.cpu().eval()
    if hasattr(net, "do_ds"):
        net.do_ds = False  # type: ignore[assignment]
    return LoadedModel(net=net, task=task, source=Source(format="mednext-edge run", file=name, sha256=""))


def _prepare_all(dataset: Dataset, task: Task, team: Team, on_case: Callable[[int, int], None]) -> list[Prepared]:
    """The training cases, once those for validation have been looked at: a broken file shows before the first step."""
    held = team.share(dataset.validation)
    total = len(held) + len(dataset.training)
    for done, case in enumerate(held, 1):
        _prepare(case, task, "validation")
        on_case(done, total)
    prepared = []
    for done, case in enumerate(dataset.training, len(held) + 1):
        prepared.append(_prepare(case, task))
        on_case(done, total)
    return prepared


def _prepare(case: Case, task: Task, use: str = "training") -> Prepared:
    if task.model.kind == "classification":
        if case.category is None:
            raise DataError(f"{use} case {case.name} has no class")
        with case.named(use):
            image = prepare(case.image(), task.preprocessing)
        return replace(image, labels=np.full(image.image.shape[1:], case.category, np.uint16))
    if case.labels is None:
        raise DataError(f"{use} case {case.name} has no labels")
    with case.named(use):
        prepared = prepare(case.image(), task.preprocessing, case.labels())
    assert prepared.labels is not None
    if int(prepared.labels.max(initial=0)) >= len(task.labels):
        raise DataError(
            f"{use} case {case.name} holds the label {int(prepared.labels.max())}; the network knows {task.labels}"
        )
    return prepared
