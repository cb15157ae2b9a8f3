"""One loop, one schedule and one budget for several networks: MedNeXt S k3, S k5, S k5 by UpKern, nnU-Net's U-Net.

    python benchmarks/training_table.py Task04_Hippocampus -o tables/hippocampus --steps 5000
    python benchmarks/training_table.py Task04_Hippocampus -o tables/hippocampus --minutes 60 --device cuda

Every run gets the same number of optimiser steps, or (`--minutes`) of minutes: then the steps are those that the
slowest network makes in that time, measured first, so that all are equal in steps and none gets more than its minutes.
UpKern starts from the finished k3 run and gets the same budget on top, as in the paper. Runs take turns epoch by
epoch, so that a machine's mood meets all alike. A run that was stopped goes on where it was. At the end every case of
the validation set is segmented by sliding window with the weights of the last epoch, and Dice and surface Dice at
1 mm are tabled with bootstrap intervals over the cases, and with the paired difference to S k5 from scratch.

PlainConvUNet needs `pip install -c constraints.txt dynamic-network-architectures`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mednext_edge.data.dataset import Dataset, open_dataset
from mednext_edge.data.recipe import prepare
from mednext_edge.environment import environment
from mednext_edge.evaluation.bootstrap import class_mean, paired_interval
from mednext_edge.evaluation.validate import validate
from mednext_edge.models.config import MedNeXtConfig
from mednext_edge.models.families import build, describe_mednext
from mednext_edge.models.loaded import LoadedModel, Source
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.runtime.torch_session import TorchSession
from mednext_edge.task import Task
from mednext_edge.training.form import training_form
from mednext_edge.training.loop import Progress, train
from mednext_edge.training.loss import SupervisedLoss
from mednext_edge.training.objective import Supervised
from mednext_edge.training.plan import TrainingPlan, plan_patch
from mednext_edge.training.start import start_network
from mednext_edge.training.state import LAST, RunFolder
from mednext_edge.training.stepper import Stepper
from mednext_edge.training.task import make_task, plan_preprocessing

REFERENCE = "S k5"
MADE_FROM = {"S k5 UpKern": "S k3"}
RESULT = "table.json"


class HighestFirst(nn.Module):
    """nnU-Net's U-Net under the loop: `do_ds` switches its deep supervision as it does MedNeXt's."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.do_ds = net, True

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        outputs: list[Tensor] = self.net(x)
        return outputs if self.do_ds else outputs[0]


def plain_unet(channels: int, classes: int, patch: tuple[int, ...]) -> nn.Module:
    """PlainConvUNet by nnU-Net's rule: stages until an axis is shorter than 8, 32 features doubled up to 320."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if len(patch) == 3 else (nn.Conv2d, nn.InstanceNorm2d)
    sides, strides = list(patch), [(1,) * len(patch)]
    while len(strides) < 6 and any(n >= 8 and n % 2 == 0 for n in sides):
        stride = tuple(2 if n >= 8 and n % 2 == 0 else 1 for n in sides)
        sides = [n // s for n, s in zip(sides, stride, strict=True)]
        strides.append(stride)
    stages = len(strides)
    net = PlainConvUNet(
        input_channels=channels,
        n_stages=stages,
        features_per_stage=[min(320, 32 << i) for i in range(stages)],
        conv_op=conv,
        kernel_sizes=3,
        strides=strides,
        n_conv_per_stage=2,
        num_classes=classes,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    net.apply(PlainConvUNet.initialize)
    return HighestFirst(net)


@dataclass
class Entry:
    """One row of the table: its task, plan and network as it starts."""

    name: str
    task: Task
    plan: TrainingPlan
    start: Callable[[], nn.Module]


class Pause(Exception):
    """An epoch is over; the next run's turn."""


def mednext(task: Task, plan: TrainingPlan, kernel: int, tiny: bool) -> Task:
    config = MedNeXtConfig(**task.model.config)
    if tiny:
        config = replace(
            config, channels=4, blocks=(1,) * 5, expansion=(2,) * 5, down_expansion=(2,) * 2, down_grn=(False,) * 2
        )
    config = replace(config, encoder_kernel=kernel, decoder_kernel=kernel)
    with torch.device("meta"):
        return task.model_copy(update={"model": describe_mednext(MedNeXt(config))})


def entries(dataset: Dataset, plan: TrainingPlan, out: Path, names: list[str], tiny: bool) -> list[Entry]:
    recipe = plan_preprocessing(dataset)
    base = make_task(dataset, plan, recipe)
    small, large = mednext(base, plan, 3, tiny), mednext(base, plan, 5, tiny)

    def grown() -> nn.Module:
        source = build(small.model)
        source.load_state_dict(RunFolder(out / "S k3", replace(plan, kernel=3), resume=True).weights(LAST))
        origin = LoadedModel(source, small, Source(format="run", file="S k3", sha256=""))
        return start_network(large, plan.seed, upkern=origin)

    def unet() -> nn.Module:
        torch.manual_seed(plan.seed)
        return plain_unet(len(dataset.channels), len(dataset.labels), plan.patch)

    known = {
        "S k3": Entry("S k3", small, replace(plan, kernel=3), lambda: start_network(small, plan.seed)),
        "S k5": Entry("S k5", large, replace(plan, kernel=5), lambda: start_network(large, plan.seed)),
        "PlainConvUNet": Entry("PlainConvUNet", base, replace(plan, start="PlainConvUNet"), unet),
        "S k5 UpKern": Entry("S k5 UpKern", large, replace(plan, kernel=5, start="upkern"), grown),
    }
    return [known[name] for name in names]


def one_epoch(entry: Entry, dataset: Dataset, out: Path, device: str) -> int:
    """Train until the next whole epoch is saved; how many steps are done."""
    folder = out / entry.name
    done = 0

    def stop(progress: Progress) -> None:
        nonlocal done
        done = progress.step
        if progress.step % entry.plan.steps == 0 and progress.step < progress.total:
            raise Pause

    try:
        # Validation is at the end, in full; the epochs themselves have none.
        quick = replace(dataset, validation=())
        train(quick, entry.task, entry.plan, folder, net=entry.start(), resume=True, device=device, on_step=stop)
        done = entry.plan.total_steps
    except Pause:
        pass
    return done


def seconds_a_step(entry: Entry, device: str, steps: int = 3) -> float:
    """Of a step on random patches in the form that trains, the fastest of a few."""
    stepper = Stepper(training_form(entry.start(), entry.plan, device), entry.plan, device)
    spec, times = entry.task.model, []
    images = torch.randn(entry.plan.batch, spec.in_channels, *entry.plan.patch)
    labels = torch.randint(0, spec.classes, (entry.plan.batch, 1, *entry.plan.patch)).float()
    for step in range(steps + 1):
        began = time.perf_counter()
        stepper.step(Supervised(SupervisedLoss()), images, labels, step)
        times.append(time.perf_counter() - began)
    return min(times[1:])


@contextmanager
def finished(entry: Entry, out: Path, device: str) -> Iterator[TorchSession]:
    net = entry.start()
    net.load_state_dict(RunFolder(out / entry.name, entry.plan, resume=True).weights(LAST))
    net.do_ds = False  # type: ignore[assignment]
    # As the loop validates: in float32, by our kernels where those train.
    with TorchSession(training_form(net, entry.plan, device).eval(), entry.task, device) as session:
        yield session


def scores(entry: Entry, dataset: Dataset, out: Path, device: str) -> dict[str, Any]:
    """Every validation case by the last epoch's weights; kept in the run's folder."""
    kept = out / entry.name / "scores.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    with finished(entry, out, device) as session:
        report = validate(session, dataset.validation)
    rows = {row.case: {"dice": row.dice, "nsd": row.nsd} for row in report.per_case}
    kept.write_text(json.dumps(rows))
    return rows


def table(found: dict[str, dict[str, Any]], labels: list[str]) -> dict[str, Any]:
    """Mean with 95 % interval of each metric and class, and the difference to the reference over the same cases."""

    def matrix(name: str, metric: str, columns: list[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
        cases = found[name].values()
        return np.array(
            [[np.nan if c[metric][k] is None else c[metric][k] for k in columns] for c in cases], np.float64
        )

    result: dict[str, Any] = {}
    for name in found:
        row: dict[str, Any] = {}
        for metric in ("dice", "nsd"):
            for title, columns in [*((k, [k]) for k in labels), ("mean", labels)]:
                mine = matrix(name, metric, columns)
                entry = {"mean": class_mean(mine), "ci95": paired_interval(mine, np.where(np.isnan(mine), np.nan, 0.0))}
                if REFERENCE in found and name != REFERENCE:
                    other = matrix(REFERENCE, metric, columns)
                    entry["over_reference"] = class_mean(mine) - class_mean(other)
                    entry["over_reference_ci95"] = paired_interval(mine, other)
                row[f"{metric} {title}"] = entry
        result[name] = row
    return result


def markdown(result: dict[str, Any], labels: list[str]) -> str:
    titles = [f"{metric} {k}" for metric in ("dice", "nsd") for k in (*labels, "mean")]
    lines = ["| | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for name, row in result.items():
        cells = []
        for title in titles:
            low, high = row[title]["ci95"] or (float("nan"), float("nan"))
            cells.append(f"{row[title]['mean']:.4f} ({low:.4f} to {high:.4f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name, row in result.items():
        if interval := row["dice mean"].get("over_reference_ci95"):
            gain = row["dice mean"]["over_reference"]
            lines.append(f"\n{name} over {REFERENCE}: {gain:+.4f} Dice (95 % {interval[0]:+.4f} to {interval[1]:+.4f})")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("-o", "--out", type=Path, required=True)
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--steps", type=int, help="optimiser steps of every run")
    budget.add_argument("--minutes", type=float, help="minutes of the slowest run")
    parser.add_argument("--epochs", type=int, default=20, help="into which the steps are cut; runs take turns by them")
    parser.add_argument("--networks", nargs="+", default=["S k3", "S k5", "PlainConvUNet", "S k5 UpKern"])
    parser.add_argument("--patch", type=int, nargs="+")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="networks of two levels and 4 channels, to try the script")
    asked = parser.parse_args()

    dataset = open_dataset(asked.data)
    if asked.patch:
        patch = tuple(asked.patch)
    else:
        recipe = plan_preprocessing(dataset)
        patch = plan_patch([prepare(case.image(), recipe).image.shape[1:] for case in dataset.training[:25]])
    plan = TrainingPlan(
        patch=patch,
        batch=asked.batch,
        epochs=asked.epochs,
        steps=1,
        mirror_axes=tuple(range(len(patch))),
        seed=asked.seed,
        keep="last",
    )
    asked.out.mkdir(parents=True, exist_ok=True)
    timed = asked.out / "seconds-a-step.json"
    if not timed.exists():
        rows = entries(dataset, plan, asked.out, [n for n in asked.networks if n not in MADE_FROM], asked.tiny)
        seconds = {row.name: seconds_a_step(row, asked.device) for row in rows}
        steps = asked.steps or int(asked.minutes * 60 / max(seconds.values()))
        timed.write_text(json.dumps({"seconds": seconds, "steps": max(1, steps // asked.epochs)}))
    plan = replace(plan, steps=json.loads(timed.read_text())["steps"])

    rows = entries(dataset, plan, asked.out, asked.networks, asked.tiny)
    done = dict.fromkeys(asked.networks, 0)
    while any(steps < plan.total_steps for steps in done.values()):
        for row in rows:
            source = MADE_FROM.get(row.name)
            waits = source is not None and done.get(source, plan.total_steps) < plan.total_steps
            if done[row.name] < plan.total_steps and not waits:
                done[row.name] = one_epoch(row, dataset, asked.out, asked.device)
                print(f"{row.name}: {done[row.name]} of {plan.total_steps} steps", file=sys.stderr)
    labels = [name for name, value in dataset.labels.items() if value]
    found = {row.name: scores(row, dataset, asked.out, asked.device) for row in rows}
    result = {
        "table": table(found, labels),
        "plan": plan.to_dict(),
        "parameters": {row.name: sum(p.numel() for p in row.start().parameters()) for row in rows},
        "seconds_a_step": json.loads(timed.read_text())["seconds"],
        "training_seconds": {
            row.name: RunFolder(asked.out / row.name, row.plan, resume=True).history()[-1]["seconds"] for row in rows
        },
        "cases": {"training": len(dataset.training), "validation": len(dataset.validation)},
        "environment": environment().model_dump(mode="json"),
    }
    (asked.out / RESULT).write_text(json.dumps(result, indent=2) + "\n")
    print(markdown(result["table"], labels))


if __name__ == "__main__":
    main()
