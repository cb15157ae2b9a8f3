"""`mednext-edge convert`: folds into one model, other formats, wrong requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mednext_edge.checkpoints import load, save
from mednext_edge.models.loaded import LoadedModel

from .conftest import Cli


def test_folds_become_one_model(edge: Cli, tiny_model: LoadedModel, tmp_path: Path) -> None:
    for fold in (0, 1):
        save(tmp_path / "runs" / f"fold_{fold}", tiny_model, dtype=torch.float32)
    done = edge("convert", "--folds", tmp_path / "runs", "-o", tmp_path / "all", "--json")
    assert done.code == 0, done.err
    assert done.json["task"]["model"]["variant"] == "2x mednext custom"
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        # Two equal members: their average is either of them.
        found = load(tmp_path / "all").net(x).softmax(1)
        torch.testing.assert_close(found, tiny_model.net(x).softmax(1), rtol=1e-4, atol=1e-6)
    assert edge("inspect", tmp_path / "all").code == 0


def test_other_formats(edge: Cli, checkpoint: Path, tmp_path: Path) -> None:
    for name, kind in (("nnunet-v2", "nnunet-v2"), ("monai", "state-dict")):
        done = edge("convert", checkpoint, "--to", name, "-o", tmp_path / name)
        assert (done.code, done.out) == (0, ""), done.err
        assert "warning" in done.err
        assert load(tmp_path / name).source.format == kind


def test_wrong_requests(edge: Cli, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for args, code, words in (
        (["convert", checkpoint, "--to", "monay", "-o", out], 2, "Did you mean `monai`"),
        (["convert", "--folds", checkpoint, "-o", out], 1, "holds no fold_0"),
        (["convert", checkpoint, "-o", tmp_path], 2, "exists"),
        (["convert", checkpoint, tmp_path / "absent", "-o", out], 1, "absent"),
    ):
        done = edge(*args)
        assert (done.code, words in done.err) == (code, True), done.err
    assert not out.exists()


def test_a_bare_checkpoint_with_a_task(edge: Cli, tiny_model: LoadedModel, tmp_path: Path) -> None:
    """What `inspect --json` shows, changed, is taken back."""
    bare = tmp_path / "bare.pth"
    torch.save(tiny_model.net.state_dict(), bare)
    task = edge("inspect", bare, "--json").json["task"]
    labels = {"background": 0, "liver": 1, "tumour": 2}
    (tmp_path / "task.json").write_text(json.dumps(task | {"labels": labels}))
    done = edge("convert", bare, "--task", tmp_path / "task.json", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert load(tmp_path / "out").task == load(bare, labels=labels).task


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ("{", 1, "cannot be read as JSON"),
        ("[]", 1, "expected a JSON object"),
        ('{"labels": {"background": 0}}', 2, "do not number 3 classes"),
        ('{"label": {}}', 2, "Did you mean `labels`"),
    ],
)
def test_a_task_that_does_not_fit(
    edge: Cli, checkpoint: Path, tmp_path: Path, content: str, code: int, message: str
) -> None:
    (tmp_path / "task.json").write_text(content)
    done = edge("convert", checkpoint, "--task", tmp_path / "task.json", "-o", tmp_path / "out")
    assert done.code == code
    assert message in " ".join(done.err.split())
    assert not (tmp_path / "out").exists()
