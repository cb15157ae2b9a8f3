"""Kill a training run with SIGKILL at random moments, resume it each time, and compare its weights with a run without.

    python benchmarks/training_kill.py --kills 20 --out kill.json

Each attempt is killed a random part of a second after a random one of its steps, so that kills meet the steps, the
preparation of a batch, validations and the writing of checkpoints. FP32 on the CPU, one thread; the two must agree bit
for bit, in weights, averaged weights, the optimiser's moments and the log.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mednext_edge.data.dataset import open_dataset
from mednext_edge.environment import environment
from mednext_edge.training.loop import train
from mednext_edge.training.plan import TrainingPlan
from mednext_edge.training.state import BEST, LAST, LOG
from tests.training.blobs import plan, task_for, write_blobs

MOST_STEPS = 4
"""Of an attempt; two make an epoch."""
LATEST_S = 0.5


def tiny(epochs: int) -> TrainingPlan:
    return plan(epochs=epochs, steps=2, batch=2, ema=0.9, accumulate=2, validate_every=3)


def run(data: Path, out: Path, epochs: int, steps: Synchronized[int] | None = None) -> None:
    """One process's attempt, from the start or from the last whole epoch; it counts its steps in `steps`."""
    torch.set_num_threads(1)
    dataset = open_dataset(data)

    def count(_: object) -> None:
        if steps is not None:
            steps.value += 1

    train(dataset, task_for(dataset), tiny(epochs), out, resume=True, on_step=count)


def killed(data: Path, out: Path, epochs: int, kills: int, seed: int) -> list[dict[str, object]]:
    """Runs until done, killed `kills` times; where each kill struck."""
    rng, struck = random.Random(seed), []
    context = multiprocessing.get_context("fork")  # the libraries are loaded already: an attempt begins at once
    while True:
        steps = context.Value("i", 0)
        process = context.Process(target=run, args=(data, out, epochs, steps))
        process.start()
        wanted = rng.randint(1, MOST_STEPS)
        while process.is_alive() and (steps.value < wanted or len(struck) == kills):
            time.sleep(0.005)
        if process.is_alive():
            time.sleep(rng.uniform(0, LATEST_S))
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode == -signal.SIGKILL:
            log = (out / LOG).read_text().splitlines() if (out / LOG).exists() else []
            temporary = sorted(f.name for f in out.glob(".*.tmp"))
            struck.append({"after_step": steps.value, "epochs_done": len(log), "half_written": temporary})
            continue
        if process.exitcode != 0:
            raise SystemExit(f"an attempt ended with exit code {process.exitcode} after {len(struck)} kills")
        if len(struck) < kills:
            raise SystemExit(f"the run was over after {len(struck)} kills; give more --epochs")
        return struck


def same(one: Path, other: Path) -> dict[str, bool]:
    """What agrees bit for bit between two run folders."""
    agreed: dict[str, bool] = {}
    for name in (LAST, BEST):
        a, b = (torch.load(folder / name, weights_only=True) for folder in (one, other))
        for part in ("network_weights", "average"):
            agreed[f"{name} {part}"] = all(torch.equal(a[part][key], b[part][key]) for key in a[part])
        slots = a["optimizer_state"]["state"]
        agreed[f"{name} moments"] = slots.keys() == b["optimizer_state"]["state"].keys() and all(
            torch.equal(slots[key][moment], b["optimizer_state"]["state"][key][moment])
            for key in slots
            for moment in ("exp_avg", "exp_avg_sq")
        )
    agreed["log"] = _log(one) == _log(other)
    return agreed


def _log(folder: Path) -> list[dict[str, object]]:
    """The log without what is measured in time and memory."""
    entries = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [
        {key: entry[key] for key in ("step", "epoch", "loss", "rate", "dice", "dice_per_class")} for entry in entries
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = write_blobs(folder / "data", cases=5)
        process = multiprocessing.get_context("fork").Process(target=run, args=(data, folder / "whole", asked.epochs))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit("the run without kills failed")
        struck = killed(data, folder / "killed", asked.epochs, asked.kills, asked.seed)
        agreed = same(folder / "whole", folder / "killed")
    result = {"kills": len(struck), "agreed": agreed, "struck": struck, "environment": environment()}
    print(json.dumps({"kills": len(struck), "agreed": agreed}, indent=2))
    if asked.out:
        from pydantic_core import to_json

        asked.out.write_bytes(to_json(result, indent=2) + b"\n")
    sys.exit(0 if all(agreed.values()) else 1)


if __name__ == "__main__":
    main()
