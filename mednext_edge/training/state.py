"""The run folder: plan, log, and checkpoints that survive a kill at any moment.

`plan.json` is the recipe, `log.jsonl` one line an epoch, `last.pt` the newest whole epoch (weights,
optimiser, counters), `best.pt` the best validated weights. Every file is written to a temporary name
and renamed.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mednext_edge.errors import CheckpointError, UsageError
from mednext_edge.training.plan import TrainingPlan

LAST, BEST, PLAN, LOG = "last.pt", "best.pt", "plan.json", "log.jsonl"


@dataclass
class Counters:
    """Steps done, seconds spent, and the best mean validation Dice so far (-1 before the first)."""

    step: int = 0
    seconds: float = 0.0
    best: float = -1.0


class RunFolder:
    """The files of one run.

    Args:
        path: created by `restore` when missing, so that a request that fails before leaves nothing.
        plan: what is to be run.
        resume: go on with the run that is there.

    Raises:
        UsageError: a run is there and `resume` is off; or its plan is another one.
    """

    def __init__(self, path: Path, plan: TrainingPlan, *, resume: bool) -> None:
        self.path, self._plan = path, plan
        found = path / PLAN
        if found.exists():
            if not resume:
                raise UsageError(f"{path} already holds a run; go on with --resume, or choose another --out")
            # A plan of an earlier version lacks the fields that came later; their defaults are what it did.
            before = json.loads(_dump(TrainingPlan())) | json.loads(found.read_text())
            changed = [k for k, v in json.loads(_dump(plan)).items() if before.get(k) != v]
            if changed:
                raise UsageError(
                    f"{path} was started with another plan ({', '.join(changed)} differ); "
                    "resume with the same options, or choose another --out"
                )

    def restore(self, net: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> Counters:
        """Start the run: put the newest whole epoch into the network and optimiser; zero counters when there is none.

        Raises:
            CheckpointError: the last checkpoint is damaged.
        """
        if not (self.path / PLAN).exists():
            self.path.mkdir(parents=True, exist_ok=True)
            self._write(PLAN, _dump(self._plan).encode())
        if not (self.path / LAST).exists():
            return Counters()
        saved = _load(self.path / LAST)
        net.load_state_dict(saved["network_weights"])
        optimizer.load_state_dict(saved["optimizer_state"])
        scaler.load_state_dict(saved["scaler_state"])
        return Counters(**saved["counters"])

    def save(
        self,
        name: str,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        counters: Counters,
    ) -> None:
        """Write a whole checkpoint under `LAST` or `BEST`."""
        temporary = self.path / f".{name}.tmp"
        state = {
            "network_weights": net.state_dict(),
            "optimizer_state": optimizer.state_dict(),
            "scaler_state": scaler.state_dict(),
            "counters": asdict(counters),
        }
        torch.save(state, temporary)
        temporary.replace(self.path / name)

    def best_weights(self) -> Mapping[str, Tensor]:
        """The weights of the best validation, or of the last epoch when nothing was validated."""
        best = self.path / BEST
        weights: Mapping[str, Tensor] = _load(best if best.exists() else self.path / LAST)["network_weights"]
        return weights

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append one epoch; entries of epochs that a kill undid are dropped first."""
        kept = [e for e in self.history() if e["step"] < entry["step"]]
        self._write(LOG, "".join(json.dumps(e) + "\n" for e in [*kept, dict(entry)]).encode())

    def history(self) -> list[dict[str, Any]]:
        """All logged epochs, oldest first."""
        log = self.path / LOG
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def _write(self, name: str, content: bytes) -> None:
        temporary = self.path / f".{name}.tmp"
        temporary.write_bytes(content)
        temporary.replace(self.path / name)


def _dump(plan: TrainingPlan) -> str:
    return json.dumps(plan.to_dict(), indent=2)


def _load(path: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        # PyTorch's own words are a page on how to switch its safety off.
        raise CheckpointError(f"{path} cannot be read back, it is damaged; remove it to start again") from error
    return saved
