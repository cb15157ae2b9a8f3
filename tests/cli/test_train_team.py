"""`torchrun ... mednext-edge train`: the command in several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mednext_edge.checkpoints import load

from .conftest import Cli
from .small_sets import HELD, voxel, write

ROOT = Path(__file__).resolve().parents[2]
PAIR = ["--epochs", 1, "--steps", 2, "--batch", 2, "--patch", 32, 16, 16, "--amp", "fp32"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this PyTorch has no Gloo"),
]


PROGRAM = "from mednext_edge.cli.main import main\n\nmain()\n"


def in_two_processes(folder: Path, *args: object) -> subprocess.CompletedProcess[str]:
    """The program, under torchrun; `folder` takes a file that starts it."""
    script = folder / "program.py"
    script.write_text(PROGRAM)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, str(script), *map(str, args)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_two_processes_write_one_run(edge: Cli, dataset: Path, tmp_path: Path) -> None:
    one = edge("train", dataset, *PAIR, "-o", tmp_path / "one", "--json")
    assert one.code == 0, one.err
    done = in_two_processes(tmp_path, "train", dataset, *PAIR, "-o", tmp_path / "two", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    # One document, of the process that leads.
    record = json.loads(done.stdout)
    assert record["last"]["loss"] == pytest.approx(one.json["last"]["loss"], rel=1e-3)
    assert record["plan"] == one.json["plan"]
    assert done.stderr.count("plan for small") == 1
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
    assert load(tmp_path / "two").task == load(tmp_path / "one").task


def test_what_one_process_alone_meets_ends_all(tmp_path: Path) -> None:
    """Validation cases are shared: the broken one is seen by one of the two."""
    data = write(tmp_path / "data", only=HELD, image=voxel(np.nan))
    done = in_two_processes(tmp_path, "train", data, *PAIR, "-o", tmp_path / "run")
    assert done.returncode != 0
    assert done.stderr.count(f"{HELD}.nii.gz holds 1 NaN or infinite voxels") == 1
    assert not (tmp_path / "run").exists()
