"""`mednext-edge validate`: figures, the gate, and data that does not fit."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mednext_edge.checkpoints import load, save

from .conftest import Cli


def test_against_a_baseline(edge: Cli, bundle: Path, checkpoint: Path, dataset: Path) -> None:
    done = edge("validate", bundle, "--data", dataset, "--baseline", checkpoint, "--json")
    assert done.code == 0
    accuracy = done.json["report"]["accuracy"]
    assert accuracy["labelled"] == 2
    assert accuracy["voxel_agreement"] > 0.999
    assert abs(accuracy["drop"]["dice_mean"]) < 0.005
    assert done.json["gate"]["status"] == "passed"


def test_words(edge: Cli, bundle: Path, checkpoint: Path, dataset: Path) -> None:
    done = edge("validate", bundle, "--data", dataset, "--baseline", checkpoint)
    assert (done.code, done.out) == (0, "")
    for words in ("Accuracy on 2 labelled cases", "Dice baseline", "Dice this", "one", "mean", "accuracy gate passed"):
        assert words in done.err


def test_without_a_baseline(edge: Cli, checkpoint: Path, dataset: Path) -> None:
    done = edge("validate", checkpoint, "--data", dataset, "--json")
    assert done.code == 0
    assert done.json["report"]["accuracy"]["drop"] is None
    assert done.json["gate"]["status"] == "not_run"


def test_drop_over_the_limit_is_exit_3_with_its_report(edge: Cli, checkpoint: Path, tmp_path: Path) -> None:
    """The reference is what the baseline finds, so that any other network must lose."""
    images, labels, other = tmp_path / "images", tmp_path / "labels", tmp_path / "other"
    images.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        voxels = rng.normal(size=(12, 12, 12)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), images / f"{name}.nii.gz")
    assert edge("predict", checkpoint, "-i", images, "-o", labels, "--disable_tta").code == 0
    model = load(checkpoint)
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.neg_()
    save(other, model, dtype=torch.float32)
    args = ["validate", other, "--data", f"{images},{labels}", "--baseline", checkpoint, "--json"]
    done = edge(*args)
    assert done.code == 3
    assert done.json["report"]["accuracy"]["baseline"]["dice_mean"] == 1.0
    assert done.json["gate"]["status"] == "failed"
    assert "error: " in done.err
    assert "allowed are 0.0050" in done.err
    assert edge(*args, "--max-drop", "1").code == 0


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--metric", "dise"], 2, "Did you mean `dice`"),
        (["--max-drop", "-1"], 2, "--max-drop"),
        (["--data", "/nowhere"], 1, "/nowhere"),
        (["--baseline", "/nowhere"], 1, "/nowhere"),
    ],
)
def test_wrong_requests(edge: Cli, bundle: Path, dataset: Path, flags: list[str], code: int, words: str) -> None:
    done = edge("validate", bundle, "--data", dataset, *flags)
    assert (done.code, done.out) == (code, "")
    assert words in done.err
