"""The run folder: plan, log, and checkpoints that survive a kill at any moment.

`plan.json` is the recipe, `subject.json` the task and the cases' names, `log.jsonl` one line an epoch,
`last.pt` the newest whole epoch (weights, optimiser, counters), `best.pt` the best validated weights.
Every file is written to a temporary name and renamed.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mednext_edge.data.dataset import Dataset
from mednext_edge.errors import CheckpointError, DataError, UsageError
from mednext_edge.task import Task
from mednext_edge.training.plan import EXECUTION, TrainingPlan

LAST, BEST, PLAN, SUBJECT, LOG = "last.pt", "best.pt", "plan.json", "subject.json", "log.jsonl"


@dataclass
class Counters:
    """Steps done, seconds spent, and the best mean validation Dice so far (-1 before the first)."""

    step: int = 0
    seconds: float = 0.0
    best: float = -1.0


class RunFolder:
    """The files of one run.

    Args:
        path: created by `begin` when missing, so that a request that fails before leaves nothing.
        plan: what is to be run.
        resume: go on with the run that is there.

    Raises:
        UsageError: a run is there and `resume` is off; or its plan is another one; or a file is in the way.
        CheckpointError: its plan is damaged.
    """

    def __init__(self, path: Path, plan: TrainingPlan, *, resume: bool) -> None:
        self.path, self._plan = path, plan
        there = next((p for p in (path, *path.absolute().parents) if p.exists()), path)
        if there.exists() and not there.is_dir():
            raise UsageError(f"{there} is a file; expected a folder for the run. Choose another --out")
        found = path / PLAN
        if found.exists():
            if not resume:
                raise UsageError(f"{path} already holds a run; go on with --resume, or choose another --out")
            # A plan of an earlier version lacks the fields that came later; their defaults are what it did.
            before = json.loads(_dump(TrainingPlan())) | _read(found)
            changed = [k for k, v in json.loads(_dump(plan)).items() if before.get(k) != v and k not in EXECUTION]
            if changed:
                raise UsageError(
                    f"{path} was started with another plan ({', '.join(changed)} differ); "
                    "resume with the same options, or choose another --out"
                )

    def begin(self, task: Task, dataset: Dataset) -> None:
        """Create the folder and write what is run, where it is not there.

        Raises:
            UsageError: the run is of another task, or of other cases.
            CheckpointError: what says so is damaged.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        subject = {
            "task": task.model_dump(mode="json"),
            "training": [case.name for case in dataset.training],
            "validation": [case.name for case in dataset.validation],
        }
        subject = json.loads(json.dumps(subject))
        if (self.path / SUBJECT).exists():
            before = _read(self.path / SUBJECT)
            changed = [name for key, now in subject.items() for name in _differences(key, before.get(key), now)]
            if changed:
                raise UsageError(
                    f"{self.path} was started on other data ({', '.join(changed)} differ); resume with the same data "
                    "and folds, or choose another --out"
                )
        elif not (self.path / PLAN).exists():
            self._write(SUBJECT, (json.dumps(subject, indent=2) + "\n").encode())
        if not (self.path / PLAN).exists():
            self._write(PLAN, _dump(self._plan).encode())

    def restore(self) -> tuple[Mapping[str, Any] | None, Counters]:
        """The newest whole epoch: state and counters; None and zeros when there is none.

        Raises:
            CheckpointError: the last checkpoint is damaged, or is none of a run.
        """
        if not (self.path / LAST).exists():
            return None, Counters()
        saved = _load(self.path / LAST)
        try:
            return saved, Counters(**saved["counters"])
        except (KeyError, TypeError) as error:
            raise _foreign(self.path / LAST) from error

    def save(self, name: str, state: Mapping[str, Any], counters: Counters) -> None:
        """Write a whole checkpoint under `LAST` or `BEST`.

        Raises:
            DataError: the disk is full, or another reason not to write; the checkpoint before stays.
        """
        # Through a file of Python's: PyTorch's own does not say why it could not write.
        with self._replacing(name) as temporary, temporary.open("wb") as file:
            torch.save({**state, "counters": asdict(counters)}, file)

    def weights(self, name: str) -> Mapping[str, Tensor]:
        """The weights of `BEST`, or of `LAST` where nothing was validated: the averaged ones where there are any."""
        chosen = self.path / name
        saved = _load(chosen if chosen.exists() else self.path / LAST)
        weights: Mapping[str, Tensor] = saved["average"] if "average" in saved else saved["network_weights"]
        return weights

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append one epoch; entries of epochs that a kill undid are dropped first."""
        kept = [e for e in self.history() if e["step"] < entry["step"]]
        self._write(LOG, "".join(json.dumps(e) + "\n" for e in [*kept, dict(entry)]).encode())

    def history(self) -> list[dict[str, Any]]:
        """All logged epochs, oldest first.

        Raises:
            CheckpointError: the log is damaged.
        """
        log = self.path / LOG
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        try:
            # Without its step an entry has no place among the others.
            return [entry | {"step": int(entry["step"])} for entry in map(json.loads, lines)]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{log} is damaged; remove it to go on without the log of the epochs before"
            ) from error

    def _write(self, name: str, content: bytes) -> None:
        with self._replacing(name) as temporary:
            temporary.write_bytes(content)

    @contextmanager
    def _replacing(self, name: str) -> Iterator[Path]:
        """A temporary file that takes the place of `name` once it is whole."""
        temporary = self.path / f".{name}.tmp"
        try:
            yield temporary
            temporary.replace(self.path / name)
        # PyTorch's writer of zip files turns a full disk into a RuntimeError.
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            free = shutil.disk_usage(self.path).free / 1e6
            reason = _reason(error)
            raise DataError(
                f"{self.path / name} cannot be written: {reason} ({free:.0f} MB are free); what was saved before is "
                "whole: make room and go on with --resume"
            ) from error


def saved_plan(path: Path) -> TrainingPlan | None:
    """The plan of the run in a folder; None where there is none.

    Raises:
        CheckpointError: `plan.json` is damaged.
    """
    file = path / PLAN
    if not file.exists():
        return None
    try:
        return TrainingPlan(**_read(file))
    except (TypeError, UsageError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); choose another --out to start anew") from error


def _reason(error: BaseException) -> str:
    """The system's words, which PyTorch's writer hides behind its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0]


def _read(file: Path) -> dict[str, Any]:
    """A JSON object of the run folder.

    Raises:
        CheckpointError: it cannot be read, or is another thing.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); choose another --out to start anew") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file} is damaged: found a {type(content).__name__}, expected an object; "
            "choose another --out to start anew"
        )
    return content


def _differences(name: str, before: object, now: object) -> list[str]:
    """Names of what differs between two JSON values, such as `task.model.in_channels`."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [found for key in keys for found in _differences(f"{name}.{key}", before.get(key), now.get(key))]
    return [] if before == now else [name]


def _dump(plan: TrainingPlan) -> str:
    return json.dumps(plan.to_dict(), indent=2)


def _load(path: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        # PyTorch's own words are a page on how to switch its safety off.
        raise CheckpointError(f"{path} cannot be read back, it is damaged; remove it to start again") from error
    if not isinstance(saved, dict) or "network_weights" not in saved:
        raise _foreign(path)
    return saved


def _foreign(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is no checkpoint of a run of this version; put the run's own back, or choose another --out "
        "to start anew"
    )
