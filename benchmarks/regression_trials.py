"""Does the gate of `mednext-edge bench --compare` find what it should, and nothing else? A log of trials.

    python benchmarks/regression_trials.py [CHECKPOINT] [--patch 'D H W'] [--planted N] [--same N] --out FILE

Work is planted into a copy of an OpenVINO FP32 bundle: to the image a branch is added whose last convolution has zero
weights, so that the labels stay, and whose width is chosen by measurement to make the engine take 10 % longer. Trials
with it and with an exact copy follow each other in random order, each with processes of its own. The log is written
after every trial.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import openvino as ov
import typer
from openvino import opset13 as ops

import mednext_edge as mx
from mednext_edge.bundle import BundleWriter, read_manifest
from mednext_edge.environment import environment
from mednext_edge.evaluation.duel import Duel, duel
from mednext_edge.evaluation.ratios import median_ratio
from mednext_edge.evaluation.regression import Rules
from mednext_edge.evaluation.worker import CLOCKS
from mednext_edge.evaluation.workers import Clock, Side
from mednext_edge.runtime.openvino_session import OpenVinoSession
from mednext_edge.task import Task

PLANTED = 1.10
WIDTHS = range(32, 257, 32)
FINER = 8
WARMUP = 3


@dataclass(frozen=True)
class Trial:
    """One comparison: whether work was planted, what was found, and what it took."""

    planted: bool
    status: str
    noise: tuple[float, float, float]
    ratio: tuple[float, float, float] | None
    confirmed: tuple[float, float, float] | None
    pairs: int
    seconds: float
    load: float
    """Processes that wanted to run on this machine, mean of a minute, at the end of the trial."""

    @classmethod
    def of(cls, found: Duel, planted: bool) -> Trial:
        phases = [found.noise, found.compared, found.confirmed]
        noise, compared, confirmed = (
            None if phase is None else (phase.finding.ratio.value, phase.finding.ratio.low, phase.finding.ratio.high)
            for phase in phases
        )
        assert noise is not None
        pairs = sum(len(phase.finding.logs) for phase in phases if phase is not None)
        load = os.getloadavg()[0]
        return cls(planted, found.status, noise, compared, confirmed, pairs, found.seconds, load)


def main(
    out: Annotated[Path, typer.Option(help="The log, JSON.")],
    checkpoint: Annotated[str, typer.Argument(help="As of mednext-export.")] = "demo:brain-tissue",
    patch: Annotated[str, typer.Option(metavar="'D H W'")] = "16 16 32",
    planted: Annotated[int, typer.Option(min=0, help="Trials with 10 % more work.")] = 10,
    same: Annotated[int, typer.Option(min=0, help="Trials of two equals.")] = 20,
    seconds: Annotated[float, typer.Option(help="Longest time of a trial's pairs.")] = 120.0,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    clock: Annotated[str, typer.Option(metavar="wall|cpu", help="As of bench --compare.")] = "wall",
) -> None:
    size = tuple(map(int, patch.split()))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = mx.export(mx.load(checkpoint), target="openvino", precision="fp32", patch=size, out=folder / "base")
        manifest = read_manifest(base)
        width, truth = choose_width(base / manifest.engine.file, manifest.task, size, threads, cast("Clock", clock))
        typer.echo(f"a branch of {width} channels: {truth[0]:.3f} ({truth[1]:.3f} to {truth[2]:.3f}) as long", err=True)
        slow = folder / "slow"
        with (writer := BundleWriter(slow)) as inside:
            model = plant(base / manifest.engine.file, size, width)
            ov.save_model(model, inside / manifest.engine.file, compress_to_fp16=False)
            writer.commit(manifest.model_copy(update={"files": ()}))
        check_labels(base, slow, size)
        trials: list[Trial] = []
        rules = Rules()
        kinds = np.random.default_rng(0).permutation([True] * planted + [False] * same)
        for seed, kind in enumerate(kinds):
            reference = Side("reference", str(base), threads=threads, patch=size, clock=cast("Clock", clock))
            this = replace(reference, name="this", source=str(slow if kind else base))
            trials.append(Trial.of(duel(this, reference, rules, seconds=seconds, seed=seed), bool(kind)))
            setting = {"checkpoint": checkpoint, "patch": size, "threads": threads, "clock": clock, "truth": truth}
            write(out, trials, rules, setting)
            typer.echo(f"{len(trials)} of {len(kinds)}: {trials[-1]}", err=True)


def choose_width(
    file: Path, task: Task, size: tuple[int, ...], threads: int, clock: Clock
) -> tuple[int, tuple[float, float, float]]:
    """The branch that comes closest to 10 %, and what it takes, both measured here in turns."""
    coarse = _timed(file, task, size, threads, clock, WIDTHS, rounds=30)
    near = min(coarse, key=lambda width: abs(coarse[width][0] - PLANTED))
    finer = range(max(FINER, near - 24), near + 25, FINER)
    fine = _timed(file, task, size, threads, clock, finer, rounds=60)
    best = min(fine, key=lambda width: abs(fine[width][0] - PLANTED))
    return best, fine[best]


def _timed(
    file: Path, task: Task, size: tuple[int, ...], threads: int, clock: Clock, widths: range, rounds: int
) -> dict[int, tuple[float, float, float]]:
    models = {"0": _base(file, size)} | {str(width): plant(file, size, width) for width in widths}
    sessions = {name: OpenVinoSession(model, task, "fp32", threads=threads) for name, model in models.items()}
    generator = np.random.default_rng(0)
    x = generator.standard_normal((1, task.model.in_channels, *size), dtype=np.float32)
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for index in range(WARMUP + rounds):
        for name in generator.permutation(list(sessions)):
            start = CLOCKS[clock]()
            sessions[name].run(x)
            if index >= WARMUP:
                taken[name].append(CLOCKS[clock]() - start)
    for session in sessions.values():
        session.close()
    found = {width: median_ratio(np.log(taken[str(width)]) - np.log(taken["0"])) for width in widths}
    return {width: (one.value, one.low, one.high) for width, one in found.items()}


def _base(file: Path, size: tuple[int, ...]) -> ov.Model:
    model = ov.Core().read_model(file)
    model.reshape([1, int(model.input(0).partial_shape[1].get_length()), *size])
    return model


def plant(file: Path, size: tuple[int, ...], width: int) -> ov.Model:
    """The network, and beside it two convolutions of so many channels that come to nothing."""
    model = _base(file, size)
    image = model.input(0).get_node()
    readers = list(image.output(0).get_target_inputs())
    channels = int(image.shape[1])
    rng = np.random.default_rng(0)
    inner = _pointwise(image, rng.standard_normal((width, channels)))
    inner = _pointwise(inner, rng.standard_normal((width, width)))
    nothing = _pointwise(inner, np.zeros((channels, width)))
    whole = ops.add(image, nothing)
    for reader in readers:
        reader.replace_source_output(whole.output(0))
    model.validate_nodes_and_infer_types()
    return model


def _pointwise(x: Any, weight: Any) -> Any:
    dims = len(x.shape) - 2
    filters = ops.constant(weight.reshape(*weight.shape, *(1,) * dims).astype(np.float32))
    return ops.convolution(x, filters, [1] * dims, [0] * dims, [0] * dims, [1] * dims)


def check_labels(base: Path, slow: Path, size: tuple[int, ...]) -> None:
    """Planted work must not change what is computed."""
    with mx.open(base, patch=size) as one, mx.open(slow, patch=size) as other:
        x = np.random.default_rng(0).standard_normal((1, one.task.model.in_channels, *size), dtype=np.float32)
        if not (one.run(x).argmax(1) == other.run(x).argmax(1)).all():
            raise SystemExit("the planted work changed the labels")


def write(out: Path, trials: list[Trial], rules: Rules, setting: dict[str, Any]) -> None:
    """The log with its summary, whole or not at all."""
    planted, same = ([trial for trial in trials if trial.planted == kind] for kind in (True, False))
    summary = {
        "planted": len(planted),
        "found": sum(trial.status == "slower" for trial in planted),
        "same": len(same),
        "false_alarms": sum(trial.status == "slower" for trial in same),
        "too_noisy": sum(trial.status == "noisy" for trial in trials),
        "undecided": sum(trial.status == "undecided" for trial in trials),
    }
    whole = {**setting, "rules": vars(rules), "summary": summary, "trials": [vars(trial) for trial in trials]}
    temporary = out.with_name(f".{out.name}.part")
    temporary.write_text(json.dumps({**whole, "environment": environment().model_dump()}, indent=1) + "\n")
    temporary.replace(out)


if __name__ == "__main__":
    typer.run(main)
