"""Several processes do what one does with the same batch; each has its share of patches and of validation cases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mednext_edge.data.dataset import Dataset, open_dataset
from mednext_edge.errors import UsageError
from mednext_edge.task import Task
from mednext_edge.training.batches import BatchSource
from mednext_edge.training.loop import Progress, _prepare, train
from mednext_edge.training.state import LAST
from mednext_edge.training.team import ALONE, Team, join

from .blobs import plan, precise_network, write_blobs

ROOT = Path(__file__).resolve().parents[2]
TWENTY: dict[str, object] = {"epochs": 2, "steps": 10, "batch": 4, "validate_every": 2}
RUN = """
import json, sys
from pathlib import Path
import torch
from mednext_edge.data.dataset import open_dataset
from mednext_edge.training.loop import train
from mednext_edge.training.team import join
from tests.training.blobs import plan, precise_network, task_for

folder, out, changes = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
torch.set_num_threads(1)
dataset = open_dataset(folder)
with join("cpu") as team:
    seen = []
    task, chosen = task_for(dataset), plan(**changes)
    train(dataset, task, chosen, out, net=precise_network(task, chosen.seed), team=team, on_step=seen.append)
    found = [{"loss": p.loss, "dice": p.dice, "validation": p.validation} for p in seen]
    (out / f"seen-{team.rank}.json").write_text(json.dumps(found))
"""


def in_processes(count: int, folder: Path, out: Path, changes: dict[str, object]) -> None:
    script = out.with_suffix(".py")
    script.write_text(RUN)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    done = subprocess.run(
        [*launcher, str(script), str(folder), str(out), json.dumps(changes)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten cases, of which two validate."""
    return write_blobs(tmp_path_factory.mktemp("many"), cases=10)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this PyTorch has no Gloo")
# Cut: one process adds up the same four parts, each of one patch.
@pytest.mark.parametrize(
    ("alone", "together"),
    [
        ({"batch_dice": True}, {"batch_dice": True}),
        ({"accumulate": 4}, {"accumulate": 2, "checkpoint_gradients": True}),
    ],
    ids=["pooled", "cut"],
)
def test_two_processes_equal_one(
    many: Path, task: Task, tmp_path: Path, alone: dict[str, object], together: dict[str, object]
) -> None:
    seen: list[tuple[float, float]] = []
    validated: list[dict[str, float]] = []

    def watch(progress: Progress) -> None:
        seen.append((progress.loss, progress.dice))
        validated.extend([progress.validation] if progress.validation else [])

    chosen = plan(**TWENTY | alone)
    train(open_dataset(many), task, chosen, tmp_path / "one", net=precise_network(task, chosen.seed), on_step=watch)
    in_processes(2, many, tmp_path / "two", TWENTY | together)

    one, two = (torch.load(tmp_path / name / LAST, weights_only=True)["network_weights"] for name in ("one", "two"))
    assert one.keys() == two.keys()
    apart = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert apart < 1e-7
    found = [json.loads((tmp_path / "two" / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
    for (loss, dice), other in zip(seen, found[0], strict=True):
        assert abs(loss - other["loss"]) < 1e-6
        assert abs(dice - other["dice"]) < 1e-3  # a voxel on the verge
    assert validated[-1] == pytest.approx(found[0][-1]["validation"], abs=1e-3)


def test_shares_make_the_batch(dataset: Dataset, task: Task) -> None:
    cases = [_prepare(case, task) for case in dataset.training]
    chosen = plan(batch=4)
    whole = BatchSource(cases, chosen).batch(5)
    shares = [BatchSource(cases, chosen, Team(rank, 2, rank)).batch(5) for rank in (0, 1)]
    for part in (0, 1):
        assert torch.equal(torch.cat([share[part] for share in shares]), whole[part])


def test_alone() -> None:
    with join("cpu", {}) as team:
        assert team == ALONE and team.leads
    with join("cpu", {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}) as team:
        assert team.size == 1
    assert ALONE.device("cuda") == "cuda"
    assert Team(3, 4, 1).device("cuda") == "cuda:1"
    assert Team(3, 4, 1).device("cpu") == "cpu"
    assert list(Team(1, 3).share("abcdefg")) == ["b", "e"]


@pytest.mark.parametrize(("device", "backend", "gpus"), [("cuda", "nccl", [1]), ("cpu", "gloo", [])])
def test_processes_talk_by_what_suits_their_device(
    monkeypatch: pytest.MonkeyPatch, device: str, backend: str, gpus: list[int]
) -> None:
    """Each takes its GPU before it joins, and leaves the group whatever happens; no GPU is needed to see that."""
    done: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: done.append(("gpu", index)))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda name: done.append(("join", name)))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: done.append("leave"))
    world = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}
    with pytest.raises(KeyboardInterrupt), join(device, world) as team:
        assert team == Team(rank=3, size=4, local=1)
        assert team.device(device) == ("cuda:1" if device == "cuda" else "cpu")
        raise KeyboardInterrupt
    assert done == [*(("gpu", index) for index in gpus), ("join", backend), "leave"]


def test_one_gpu_for_all_is_refused() -> None:
    world = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
    with pytest.raises(UsageError, match="found --device cuda:0 for 2 processes; give cuda"), join("cuda:0", world):
        pass


def test_a_batch_that_cannot_be_shared(dataset: Dataset, task: Task, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a batch of 2 cannot be cut into 1 parts for 3 processes"):
        train(dataset, task, plan(), tmp_path / "run", team=Team(0, 3))
    assert not (tmp_path / "run").exists()
