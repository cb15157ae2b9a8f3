"""The run folder: what may be resumed, and what a kill leaves behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from torch import nn

from mednext_edge.data.dataset import Case, Dataset
from mednext_edge.data.volume import Volume
from mednext_edge.errors import CheckpointError, DataError, UsageError
from mednext_edge.training.plan import TrainingPlan
from mednext_edge.training.state import BEST, LAST, LOG, PLAN, SUBJECT, Counters, RunFolder, saved_plan

from .blobs import plan, task_for

DATA = Dataset("d", (Case("a", lambda: Volume(np.zeros(1), np.eye(4))),), (), {"background": 0, "one": 1}, ("T1",))
TASK = task_for(DATA)


class Run:
    """A network of two weights with its optimiser, after `steps` steps."""

    def __init__(self, steps: int = 0) -> None:
        torch.manual_seed(0)
        self.net = nn.Linear(2, 1)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.1)
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.net(torch.ones(1, 2)).square().sum().backward()
            self.optimizer.step()

    def save(self, folder: RunFolder, name: str, counters: Counters) -> None:
        folder.save(
            name, {"network_weights": self.net.state_dict(), "optimizer_state": self.optimizer.state_dict()}, counters
        )

    def restore(self, folder: RunFolder) -> Counters:
        folder.begin(TASK, DATA)
        state, counters = folder.restore()
        if state is not None:
            self.net.load_state_dict(state["network_weights"])
            self.optimizer.load_state_dict(state["optimizer_state"])
        return counters


def started(path: Path, chosen: TrainingPlan | None = None) -> RunFolder:
    folder = RunFolder(path, chosen or plan(), resume=False)
    Run().restore(folder)
    return folder


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def test_nothing_is_written_before_the_run_starts(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "deep" / "run", plan(), resume=False)
    assert not names(tmp_path)
    assert Run().restore(folder) == Counters(step=0, seconds=0.0, best=-1.0)
    assert names(tmp_path / "deep" / "run") == {PLAN, SUBJECT}
    assert TrainingPlan(**json.loads((tmp_path / "deep" / "run" / PLAN).read_text())) == plan()


def test_an_existing_run_is_refused(tmp_path: Path) -> None:
    started(tmp_path / "run")
    with pytest.raises(UsageError, match="already holds a run; go on with --resume, or choose another --out"):
        RunFolder(tmp_path / "run", plan(), resume=False)


def test_another_plan_is_refused_by_what_differs(tmp_path: Path) -> None:
    started(tmp_path / "run")
    with pytest.raises(UsageError, match=r"another plan \(batch, seed differ\)"):
        RunFolder(tmp_path / "run", plan(batch=7, seed=9), resume=True)


def test_a_plan_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    started(tmp_path / "run")
    saved = json.loads((tmp_path / "run" / PLAN).read_text())
    del saved["start"]
    (tmp_path / "run" / PLAN).write_text(json.dumps(saved))
    assert RunFolder(tmp_path / "run", plan(), resume=True)
    with pytest.raises(UsageError, match=r"another plan \(start differ\)"):
        RunFolder(tmp_path / "run", plan(start="upkern:1"), resume=True)


def test_another_task_or_other_cases_are_refused(tmp_path: Path) -> None:
    started(tmp_path)
    folder = RunFolder(tmp_path, plan(), resume=True)
    folder.begin(TASK, DATA)
    more = replace(DATA, validation=(Case("b", DATA.training[0].image),))
    with pytest.raises(UsageError, match=r"started on other data \(validation differ\)"):
        folder.begin(TASK, more)
    with pytest.raises(
        UsageError, match=r"other data \(task\.model\.config\.channels, task\.model\.parameters differ\)"
    ):
        folder.begin(task_for(DATA, channels=8), DATA)
    (tmp_path / SUBJECT).unlink()  # a run of an earlier version has none
    folder.begin(TASK, more)


def test_the_saved_plan(tmp_path: Path) -> None:
    assert saved_plan(tmp_path) is None
    started(tmp_path, plan(batch=6))
    assert saved_plan(tmp_path) == plan(batch=6)
    for content in ("no json", '{"batch": 0}', '{"speed": 3}', "[]"):
        (tmp_path / PLAN).write_text(content)
        with pytest.raises(CheckpointError, match=r"plan\.json is damaged"):
            saved_plan(tmp_path)


def test_resume_of_nothing_starts(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", plan(), resume=True)
    assert Run().restore(folder).step == 0
    assert (tmp_path / "run" / PLAN).is_file()


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    started(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    run, folder = Run(steps=3), started(tmp_path)
    run.save(folder, LAST, Counters(step=12, seconds=3.5, best=0.25))
    again = Run()
    assert again.restore(RunFolder(tmp_path, plan(), resume=True)) == Counters(12, 3.5, 0.25)
    assert all(torch.equal(a, b) for a, b in zip(run.net.parameters(), again.net.parameters(), strict=True))
    before, after = run.optimizer.state_dict()["state"], again.optimizer.state_dict()["state"]
    assert before.keys() == after.keys() == {0, 1}
    for key in before:
        assert all(torch.equal(before[key][name], after[key][name]) for name in ("step", "exp_avg", "exp_avg_sq"))


def test_no_temporary_file_stays(tmp_path: Path) -> None:
    run, folder = Run(), started(tmp_path)
    run.save(folder, LAST, Counters())
    run.save(folder, BEST, Counters())
    folder.log({"step": 1})
    assert names(tmp_path) == {PLAN, SUBJECT, LAST, BEST, LOG}


def test_a_failed_write_leaves_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, folder = Run(), started(tmp_path)
    run.save(folder, LAST, Counters(step=1))
    before = (tmp_path / LAST).read_bytes()

    def half(_: object, file: BinaryIO) -> None:
        file.write(b"half")
        try:
            raise OSError(28, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 4 vs 0")  # as PyTorch's writer does

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(DataError, match=r"last\.pt cannot be written: No space left on device .* go on with --resume"):
        run.save(folder, LAST, Counters(step=2))
    assert (tmp_path / LAST).read_bytes() == before
    assert names(tmp_path) == {PLAN, SUBJECT, LAST}


def test_best_weights_are_those_of_the_last_epoch_without_validation(tmp_path: Path) -> None:
    early, late, folder = Run(steps=1), Run(steps=4), started(tmp_path)
    late.save(folder, LAST, Counters())
    assert torch.equal(folder.weights(BEST)["weight"], late.net.weight)
    early.save(folder, BEST, Counters())
    assert torch.equal(folder.weights(BEST)["weight"], early.net.weight)


def test_the_log_forgets_what_a_kill_undid(tmp_path: Path) -> None:
    folder = started(tmp_path)
    assert folder.history() == []
    for step in (2, 4, 6):
        folder.log({"step": step, "run": "first"})
    # Killed after the log of step 6 but before its checkpoint: the run goes on from step 4.
    resumed = RunFolder(tmp_path, plan(), resume=True)
    resumed.log({"step": 6, "run": "second"})
    resumed.log({"step": 8, "run": "second"})
    assert [(e["step"], e["run"]) for e in resumed.history()] == [
        (2, "first"),
        (4, "first"),
        (6, "second"),
        (8, "second"),
    ]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    folder = started(tmp_path)
    (tmp_path / LAST).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read back.*remove it to start again"):
        Run().restore(folder)
