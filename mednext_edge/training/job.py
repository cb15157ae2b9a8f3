"""The job behind `mednext-edge train`: what was asked for becomes a plan, and the plan a run, or one for each fold."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from mednext_edge.checkpoints import load, save
from mednext_edge.data.dataset import Dataset, open_dataset
from mednext_edge.data.folds import Fold, nnunet_folds, read_folds, take_all, take_fold
from mednext_edge.errors import CheckpointError, UsageError
from mednext_edge.export.targets import Progress as Report
from mednext_edge.models.families import FAMILIES
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.runtime.torch_session import torch_device
from mednext_edge.task import Preprocessing, Task
from mednext_edge.training.board import check_tensorboard
from mednext_edge.training.loop import SCORES, Progress, train
from mednext_edge.training.plan import Amp, Keep, TrainingPlan
from mednext_edge.training.qat import QatOptions, student
from mednext_edge.training.size import Sized, size_run
from mednext_edge.training.start import check_channels, check_labels, start_name, start_network
from mednext_edge.training.state import RunFolder, saved_plan
from mednext_edge.training.task import make_task, plan_photographs, plan_preprocessing
from mednext_edge.training.team import Team

RASTER_PATCH = (256, 256)


@dataclass(frozen=True)
class TrainingRequest:
    """What `mednext-edge train` was asked for; None leaves a choice to the data, the checkpoint or the recipe.

    Attributes:
        data: labelled images, as `open_dataset` takes them.
        out: run folder; with `cross_validate` one for each fold is made in it.
        spacing: voxel size in mm; `plan` is nnU-Net's choice, `own` leaves the images as they are.
        tiled: cut patches of raster images instead of stretching them.
        init, upkern_from, qat: checkpoint to start from; one of them at most.
        int8: with `qat`, whose INT8.
        fold: number of the fold that is held out; `all` trains on everything.
        splits: file with the folds, as nnU-Net writes it; None takes nnU-Net's rule.
        others: see `TrainingPlan`.
    """

    data: str
    out: Path
    network: str = "mednext"
    variant: str | None = None
    kernel: int | None = None
    grn: bool = False
    patch: tuple[int, ...] | None = None
    spacing: tuple[float, ...] | Literal["plan", "own"] = "plan"
    batch: int | None = None
    tiled: bool = False
    epochs: int | None = None
    steps: int | None = None
    validate_every: int = 10
    learning_rate: float | None = None
    amp: Amp = "auto"
    seed: int = 0
    augment: bool = True
    masked: bool | None = None
    init: str | None = None
    upkern_from: str | None = None
    qat: str | None = None
    int8: QatOptions = field(default_factory=QatOptions)
    device: str = "cpu"
    ema: float = 0.0
    keep: Keep = "best"
    accumulate: int = 1
    checkpoint_gradients: bool = False
    compile: bool = False
    workers: int = 0
    fused: bool = False
    fold: int | Literal["all"] | None = None
    splits: Path | None = None
    cross_validate: bool = False
    tensorboard: bool = False
    resume: bool = False

    def check(self) -> None:
        """Refuse what contradicts itself, before any image is read.

        Raises:
            UsageError: options that do not go together.
            TargetUnavailableError: no such device, or a package is missing.
        """
        torch_device(self.device)
        if sum(given is not None for given in (self.init, self.upkern_from, self.qat)) > 1:
            raise UsageError("a run starts from --init, from --upkern-from or from --qat; give one of them")
        if self.fold is not None and self.cross_validate:
            raise UsageError("found both --fold and --cross-validate; give one of them")
        if self.splits is not None and not (self.cross_validate or isinstance(self.fold, int)):
            raise UsageError("found --splits without --fold NUMBER or --cross-validate, which take the folds of it")
        if self.qat is not None and (self.cross_validate or self.fused):
            raise UsageError(
                "--qat trains one checkpoint on, by PyTorch's own operators; leave out --cross-validate, --fused"
            )
        if self.tensorboard:
            check_tensorboard()


@dataclass(frozen=True)
class Hooks:
    """Who is told of steps, of images that are read, of the calibration of INT8, and of what a person must know."""

    step: Callable[[Progress], None]
    case: Callable[[int, int], None]
    calibration: Report
    note: Callable[[str], None]


@dataclass(frozen=True)
class TrainingJob:
    """A request with everything that follows from its data and checkpoints.

    Attributes:
        request: what was asked for.
        dataset: the images.
        everything: all of them for training, where folds are taken of them.
        task: of the network to be trained.
        sized: its plan, and the memory that it takes.
        folds: of nnU-Net's rule where None.
        init, upkern, teacher: the loaded checkpoint that it starts from.
    """

    request: TrainingRequest
    dataset: Dataset
    everything: Dataset
    task: Task
    sized: Sized
    folds: Sequence[Fold] | None = None
    init: LoadedModel | None = None
    upkern: LoadedModel | None = None
    teacher: LoadedModel | None = None

    @property
    def runs(self) -> list[int | None]:
        """Numbers of the folds to train; None is the data's own split, or all of it."""
        if self.request.cross_validate:
            names = [case.name for case in self.everything.training]
            return list(range(len(self.folds or nnunet_folds(names))))
        return [None if self.request.fold == "all" else self.request.fold]

    def part(self, number: int | None) -> Dataset:
        """The cases of one of `runs`, as they are split for it."""
        if self.request.fold == "all":
            return self.everything
        return self.dataset if number is None else take_fold(self.dataset, number, self.folds)

    def train(self, number: int | None, hooks: Hooks, team: Team, command: str) -> dict[str, Any] | None:
        """Train one of `runs`, and write its model; returns how its weights came to be, None beside the leader.

        Raises: as `training.loop.train` does.
        """
        request, plan = self.request, self.sized.plan
        where = request.out / f"fold_{number}" if request.cross_validate else request.out
        part = self.part(number)
        go = functools.partial(
            train,
            part,
            self.task,
            plan,
            where,
            resume=request.resume,
            device=request.device,
            team=team,
            tensorboard=request.tensorboard,
            on_step=hooks.step,
            on_case=hooks.case,
            on_note=hooks.note,
        )
        if self.teacher is None:
            model = go(net=self._start(plan.seed))
        else:
            folder = RunFolder(where, plan, resume=request.resume)
            made = student(
                self.teacher,
                part.training,
                request.int8,
                folder,
                device=request.device,
                progress=hooks.calibration,
                write=team.leads,
            )
            model = made.trained(go(net=made.net, objective=made.objective(batch_dice=False)))
        if not team.leads:
            return None
        history = RunFolder(where, plan, resume=True).history()
        record = _record(command, request.data, plan, history, SCORES[self.task.model.kind][0])
        save(where, model, provenance=record)
        return record

    def _start(self, seed: int) -> nn.Module:
        try:
            return start_network(self.task, seed, init=self.init, upkern=self.upkern)
        except CheckpointError as error:
            raise CheckpointError(f"{self.request.init or self.request.upkern_from}: {error}") from error


def prepare_training(
    request: TrainingRequest, team: Team, on_note: Callable[[str], None] = lambda note: None
) -> TrainingJob:
    """Open the data and the checkpoints, and plan the run.

    Args:
        request: what was asked for.
        team: the processes that share every batch.
        on_note: told what a person should know of the data, as soon as it is open.

    Raises:
        UsageError: options that do not go together, or a plan that cannot be.
        DataError: data that cannot be trained on.
        CheckpointError: a checkpoint that cannot be started from.
    """
    request.check()
    dataset = open_dataset(request.data)
    for note in dataset.notes:
        on_note(note)
    init, upkern, teacher = (load(name) if name else None for name in (request.init, request.upkern_from, request.qat))
    for name, source in zip((request.init, request.upkern_from, request.qat), (init, upkern, teacher), strict=True):
        if name is not None and source is not None:
            check_channels(name, source, dataset)
    if teacher is not None:
        for note in check_labels(str(request.qat), teacher, dataset):
            on_note(note)
        request = _of_teacher(request, teacher)
    # What was planned from the memory that was free then holds for a run that goes on.
    first = request.out / "fold_0" if request.cross_validate else request.out
    before = saved_plan(first) if request.resume else None
    if before is not None:
        request = replace(request, patch=request.patch or before.patch, batch=request.batch or before.batch)
    # Planned from all cases, as nnU-Net does, so that the folds make one ensemble.
    folded = request.cross_validate or request.fold is not None
    everything = take_all(dataset) if folded else dataset
    folds = _folds(request, everything)
    recipe, size = _preprocessing(request, everything, init or upkern or teacher)
    sized = size_run(
        everything,
        recipe,
        _planned(request, teacher, start_name(init=init, upkern=upkern)),
        size=size,
        batch=request.batch,
        device=request.device,
        processes=team.size,
        spec=teacher.task.model if teacher else None,
        rounded=request.int8.layers(teacher) if teacher else (),
    )
    task = teacher.task if teacher else make_task(everything, sized.plan, recipe)
    return TrainingJob(request, dataset, everything, task, sized, folds, init, upkern, teacher)


def _folds(request: TrainingRequest, everything: Dataset) -> Sequence[Fold] | None:
    """The folds of a file, or None for nnU-Net's rule; those that will be trained can be made.

    Raises:
        DataError: fewer cases than folds, no such fold, or a fold of cases that are not there.
    """
    folds = read_folds(request.splits) if request.splits else None
    if request.cross_validate:
        number = len(folds or nnunet_folds(case.name for case in everything.training))
        for fold in range(number):
            take_fold(everything, fold, folds)
    elif isinstance(request.fold, int):
        take_fold(everything, request.fold, folds)
    return folds


def _of_teacher(request: TrainingRequest, teacher: LoadedModel) -> TrainingRequest:
    """The network is the teacher's; a trained one loses more by dozens of fast steps than INT8 takes from it."""
    request.int8.check(teacher)
    spec = teacher.task.model
    return replace(
        request,
        patch=request.patch or teacher.task.inference.patch,
        network=spec.family,
        variant=spec.variant,
        kernel=None if FAMILIES[spec.family].kernel is None else spec.kernel_size,
        epochs=request.epochs or 10,
        steps=request.steps or 25,
        learning_rate=request.learning_rate or 1e-5,
    )


def _preprocessing(
    request: TrainingRequest, dataset: Dataset, source: LoadedModel | None
) -> tuple[Preprocessing, tuple[int, ...] | None]:
    """The recipe, and the patch as far as it is known before the memory is."""
    size, raster = request.patch, dataset.colour is not None
    if source is not None:
        return source.task.preprocessing, size or (source.task.inference.patch if raster else None)
    if not raster:
        return plan_preprocessing(dataset, masked=request.masked, spacing=request.spacing), size
    size = size or RASTER_PATCH
    if len(size) != 2:
        raise UsageError(f"found a patch of {len(size)} sides for raster images; expected two, such as 256 256")
    return plan_photographs(dataset, None if request.tiled else (size[0], size[1])), size


def _planned(request: TrainingRequest, teacher: LoadedModel | None, start: str) -> Callable[..., TrainingPlan]:
    """The plan, still without patch, batch and mirrored axes."""
    family = FAMILIES[request.network]
    return functools.partial(
        TrainingPlan,
        family=request.network,
        variant=request.variant or family.variants[0],
        kernel=request.kernel or family.kernel,
        grn=request.grn,
        epochs=request.epochs or 1000,
        steps=request.steps or 250,
        validate_every=request.validate_every,
        learning_rate=1e-3 if request.learning_rate is None else request.learning_rate,
        amp=request.amp,
        augment=request.augment,
        seed=request.seed,
        start=request.int8.name(teacher) if teacher else start,
        ema=request.ema,
        keep=request.keep,
        accumulate=request.accumulate,
        checkpoint_gradients=request.checkpoint_gradients,
        compile=request.compile,
        fused=request.fused,
        workers=request.workers,
    )


def _record(command: str, data: str, plan: TrainingPlan, history: list[dict[str, Any]], score: str) -> dict[str, Any]:
    """How the weights came to be: command, data, plan, and the epochs that ended and that validated best."""
    validated = [epoch for epoch in history if epoch[score] is not None]
    return {
        "command": command,
        "data": data,
        "plan": plan.to_dict(),
        "last": history[-1] if history else None,
        "best": max(validated, key=lambda epoch: float(epoch[score]), default=None),
    }
