"""A training step of ours against plain PyTorch AMP code for the same network: time, and peak memory.

    python benchmarks/training_step.py --patch 64 64 64 --rounds 7 [--device cuda] [--kernel 5] [--out step.json]

Plain is what a tutorial has: autocast, GradScaler, MONAI's DiceCELoss over the heads, clip, AdamW. Ours is the loop's
own step in its forms. Times are interleaved round by round; ratios are medians over the paired rounds. Memory is
that of a process of its own for each: of the tensors on CUDA, resident over what the loaded libraries take elsewhere.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from monai.losses import DiceCELoss
from torch import nn

from mednext_edge.environment import environment
from mednext_edge.evaluation.memory import PeakMemory
from mednext_edge.models.config import mednext_config
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.training.form import training_form
from mednext_edge.training.loss import SupervisedLoss
from mednext_edge.training.objective import Supervised
from mednext_edge.training.plan import TrainingPlan
from mednext_edge.training.precision import Precision
from mednext_edge.training.stepper import Stepper

CLASSES = 3
Step = Callable[[int], None]


def network(plan: TrainingPlan) -> MedNeXt:
    torch.manual_seed(0)
    config = mednext_config(plan.variant, kernel=plan.kernel, classes=CLASSES, deep_supervision=True)
    net = MedNeXt(config)
    net.checkpoint_gradients = plan.checkpoint_gradients
    return net.train()


def data(plan: TrainingPlan) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (plan.batch, 1, *plan.patch), generator=generator).float()
    return torch.randn(plan.batch, 1, *plan.patch, generator=generator), labels


def channels_last(plan: TrainingPlan, device: str) -> Step:
    return plain(plan, device, torch.channels_last_3d)


def plain(plan: TrainingPlan, device: str, layout: torch.memory_format = torch.contiguous_format) -> Step:
    net = network(plan).to(device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=3e-5, eps=1e-4)
    precision = Precision.of(plan.amp, device)
    scaler, loss_of = precision.scaler(), DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    images, labels = data(plan)

    def step(_: int) -> None:
        x, y = images.to(device, memory_format=layout), labels.to(device)
        optimizer.zero_grad(set_to_none=True)
        with precision.context():
            outputs = net(x)
            loss = sum(
                0.5**i * loss_of(out, nn.functional.interpolate(y, size=out.shape[2:])) for i, out in enumerate(outputs)
            )
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()
        loss.item()

    return step


def ours(plan: TrainingPlan, device: str) -> Step:
    stepper = Stepper(training_form(network(plan), plan, device), plan, device)
    objective = Supervised(SupervisedLoss())
    images, labels = data(plan)
    return lambda number: void(stepper.step(objective, images, labels, number))


def void(_: object) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


FORMS: dict[str, tuple[Callable[[TrainingPlan, str], Step], dict[str, object]]] = {
    "plain AMP": (plain, {}),
    "plain AMP, channels-last": (channels_last, {}),
    "ours": (ours, {}),
    "ours, checkpointed": (ours, {"checkpoint_gradients": True}),
    "ours, in two parts": (ours, {"accumulate": 2}),
    "ours, compiled": (ours, {"compile": True}),
    "ours, fused blocks": (ours, {"fused": True}),
}


def memory_of(
    name: str, plan: TrainingPlan, device: str, threads: int, answer: multiprocessing.SimpleQueue[float]
) -> None:
    """Of two steps, in 1e6 bytes, in a fresh process."""
    torch.set_num_threads(threads)
    make, changes = FORMS[name]
    base, peak = PeakMemory(), PeakMemory()
    with base:
        pass
    with peak:
        step = make(replace(plan, **changes), device)  # type: ignore[arg-type]
        step(0)
        step(1)
    answer.put(torch.cuda.max_memory_allocated() / 1e6 if device.startswith("cuda") else peak.mb - base.mb)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variant", default="S")
    parser.add_argument("--kernel", type=int, default=3)
    parser.add_argument("--patch", type=int, nargs=3, default=(64, 64, 64))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--amp", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forms", nargs="+", default=list(FORMS))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    plan = TrainingPlan(
        variant=asked.variant, kernel=asked.kernel, patch=tuple(asked.patch), batch=asked.batch, amp=asked.amp
    )
    memory: dict[str, float] = {}
    spawn = multiprocessing.get_context("spawn")
    for name in asked.forms:
        answer = spawn.SimpleQueue()
        process = spawn.Process(target=memory_of, args=(name, plan, asked.device, torch.get_num_threads(), answer))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{name} failed with exit code {process.exitcode}")
        memory[name] = answer.get()
        print(f"{name}: {memory[name]:.0f} MB", file=sys.stderr)
    steps = {}
    for name in asked.forms:
        make, changes = FORMS[name]
        steps[name] = make(replace(plan, **changes), asked.device)  # type: ignore[arg-type]
        steps[name](0)  # compiles, allocates
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(1, asked.rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step(number)
            seconds[name].append(time.perf_counter() - began)
    first = asked.forms[0]
    rows = {
        name: {
            "median_s": statistics.median(times),
            f"times_{first}": statistics.median(t / b for t, b in zip(times, seconds[first], strict=True)),
            "peak_memory_mb": memory[name],
        }
        for name, times in seconds.items()
    }
    result = {
        "plan": plan.to_dict(),
        "device": asked.device if asked.device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "autocast": str(Precision.of(plan.amp, asked.device).autocast),
        "rounds": asked.rounds,
        "rows": rows,
        "environment": environment().model_dump(mode="json"),
    }
    print(json.dumps(rows, indent=2))
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
