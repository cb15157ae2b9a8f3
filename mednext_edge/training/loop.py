"""The training loop: resumable after a kill, validated by sliding window, its best weights returned."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mednext_edge.data.dataset import Case, Dataset
from mednext_edge.data.recipe import Prepared, prepare
from mednext_edge.errors import DataError
from mednext_edge.models.loaded import LoadedModel, Source
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.runtime.predictor import Predictor
from mednext_edge.runtime.torch_session import TorchSession
from mednext_edge.task import Task
from mednext_edge.training.batches import BatchSource
from mednext_edge.training.loss import SupervisedLoss
from mednext_edge.training.plan import Amp, TrainingPlan
from mednext_edge.training.start import start_network
from mednext_edge.training.state import BEST, LAST, RunFolder


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
    init: LoadedModel | None = None,
    upkern: LoadedModel | None = None,
    resume: bool = False,
    device: str = "cpu",
    on_step: Callable[[Progress], None] = lambda _: None,
) -> LoadedModel:
    """Train a network and return its best state in eval mode.

    A killed run goes on with `resume` from the last whole epoch, with the same patches in the same order.

    Args:
        dataset: cases with labels.
        task: what is trained, from `make_task`.
        plan: the recipe.
        out: run folder, see `training.state`.
        init: start from these weights; must be the same network.
        upkern: start from these weights of a network with other kernel sizes, resampled.
        device: torch device.
        on_step: called after every optimiser step.

    Raises:
        UsageError: the folder already holds a run and `resume` is off, or its plan differs.
        DataError: no usable case, or a loss that is not finite.
        CheckpointError: `init` or `upkern` is another network.
    """
    folder = RunFolder(out, plan, resume=resume)
    net = start_network(task, plan.seed, init=init, upkern=upkern).to(device).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay, eps=plan.eps)
    amp = choose_amp(plan.amp, device)
    scaler = torch.amp.GradScaler(torch.device(device).type, enabled=amp is torch.float16)
    source = BatchSource([_prepare(case, task) for case in dataset.training], plan)
    counters = folder.restore(net, optimizer, scaler)
    loss_of = SupervisedLoss(batch_dice=plan.batch_dice)

    clock = time.monotonic() - counters.seconds
    losses: list[float] = []
    for images, labels in source.stream(counters.step, plan.total_steps):
        rate = plan.rate_at(counters.step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        target = labels.to(device)
        with torch.autocast(torch.device(device).type, dtype=amp or torch.float32, enabled=amp is not None):
            outputs = net(images.to(device))
        loss = loss_of(outputs, target)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), plan.clip)
        scaler.step(optimizer)
        scaler.update()
        counters.step += 1
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise DataError(f"the loss became {losses[-1]} at step {counters.step}; lower --lr, or use --amp fp32")

        validation = None
        if counters.step % plan.steps == 0:
            epoch = counters.step // plan.steps
            if dataset.validation and (epoch % plan.validate_every == 0 or counters.step == plan.total_steps):
                validation = validate_dice(net, task, dataset.validation, device)
            counters.seconds = time.monotonic() - clock
            mean = float(np.nanmean(list(validation.values()))) if validation else None
            if mean is not None and mean > counters.best:
                counters.best = mean
                folder.save(BEST, net, optimizer, scaler, counters)
            entry = {"step": counters.step, "epoch": epoch, "loss": float(np.mean(losses)), "rate": rate}
            folder.log({**entry, "seconds": counters.seconds, "dice": mean, "dice_per_class": validation})
            folder.save(LAST, net, optimizer, scaler, counters)
            losses.clear()
        on_step(
            Progress(
                step=counters.step,
                total=plan.total_steps,
                loss=loss.item(),
                dice=patch_dice(outputs[0].detach(), target),
                rate=rate,
                seconds=time.monotonic() - clock,
                validation=validation,
            )
        )

    net.load_state_dict(folder.best_weights())
    net = net.cpu().eval()
    assert isinstance(net, MedNeXt)
    net.do_ds = False
    return LoadedModel(net=net, task=task, source=Source(format="mednext-edge run", file=BEST, sha256=""))


def choose_amp(asked: Amp, device: str) -> torch.dtype | None:
    """The autocast type; `auto` is fp16 on CUDA, bf16 on CPUs that multiply in it, otherwise none."""
    if asked != "auto":
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[asked]
    if torch.device(device).type == "cuda":
        return torch.float16
    # Without AVX512-BF16 or AMX, bfloat16 is emulated and slower than float32.
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bf16 else None


def validate_dice(net: nn.Module, task: Task, cases: Sequence[Case], device: str) -> dict[str, float]:
    """Mean Dice per foreground class over whole images, by sliding window; NaN for a class no case has."""
    was_training = net.training
    net.eval()
    predictor = Predictor(TorchSession(net, task, device))
    scores: dict[str, list[float]] = {name: [] for name, value in task.labels.items() if value}
    for case in cases:
        if case.labels is None:
            raise DataError(f"validation case {case.name} has no labels")
        predicted, reference = predictor.predict(case.image()), case.labels().array
        for name in scores:
            a, b = predicted == task.labels[name], reference == task.labels[name]
            total = int(a.sum()) + int(b.sum())
            if total:
                scores[name].append(2 * int((a & b).sum()) / total)
    net.train(was_training)
    return {name: float(np.mean(values)) if values else float("nan") for name, values in scores.items()}


def patch_dice(logits: Tensor, target: Tensor) -> float:
    """Mean foreground Dice of a batch, pooled over its patches."""
    predicted, reference = logits.argmax(1), target[:, 0].long()
    scores = []
    for c in range(1, logits.shape[1]):
        a, b = predicted == c, reference == c
        total = int(a.sum()) + int(b.sum())
        if total:
            scores.append(2 * int((a & b).sum()) / total)
    return float(np.mean(scores)) if scores else 1.0


def _prepare(case: Case, task: Task) -> Prepared:
    if case.labels is None:
        raise DataError(f"training case {case.name} has no labels")
    prepared = prepare(case.image(), task.preprocessing, case.labels())
    assert prepared.labels is not None
    if int(prepared.labels.max(initial=0)) >= task.model.classes:
        raise DataError(f"{case.name} holds the label {int(prepared.labels.max())}; the dataset names {task.labels}")
    return prepared
