"""A file's task with what the caller knows better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mednext_edge.checkpoints import load
from mednext_edge.errors import UsageError
from mednext_edge.task import Normalization
from tests.checkpoints.test_bare import reference

TASK: dict[str, Any] = {
    "name": "liver",
    "preprocessing": {
        "spacing": [1.5, 0.75, 0.75],
        "normalization": [{"scheme": "ct", "mean": 80, "sd": 40, "lower": -175, "upper": 250}],
    },
    "inference": {"patch": [32, 16, 16], "average": "logits"},
    "labels": {"background": 0, "liver": 1, "tumour": 2},
}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    torch.save(reference().state_dict(), tmp_path / "bare.pth")
    return tmp_path / "bare.pth"


def test_parts_replace_parts(bare: Path) -> None:
    plain, task = load(bare).task, load(bare, task=TASK).task
    assert (task.name, task.labels) == ("liver", TASK["labels"])
    assert task.preprocessing.spacing == (1.5, 0.75, 0.75)
    assert task.preprocessing.normalization == (Normalization(scheme="ct", mean=80, sd=40, lower=-175, upper=250),)
    assert (task.inference.patch, task.inference.average) == ((32, 16, 16), "logits")
    assert task.inference.mirror_axes == plain.inference.mirror_axes
    assert task.preprocessing.orientation == plain.preprocessing.orientation
    assert task.model == plain.model


def test_patch_and_labels_come_before_the_task(bare: Path) -> None:
    labels = {"background": 0, "one": 1, "two": 2}
    task = load(bare, task=TASK, labels=labels, patch=(16, 16, 16)).task
    assert (task.labels, task.inference.patch, task.inference.average) == (labels, (16, 16, 16), "logits")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such part": ({"preprocess": {}}, "preprocess.*did you mean|unknown part of a task"),
    "another network": ({"model": {"family": "mednext"}}, "does not fit bare.pth: variant"),
    "another number": ({"labels": {"background": 0, "liver": 1}}, "do not number 3 classes"),
    "no such scheme": ({"preprocessing": {"normalization": [{"scheme": "histogram"}]}}, "normalization.0.scheme"),
    "no such field": ({"preprocessing": {"voxels": [1, 1, 1]}}, "voxels: Extra inputs"),
    "two channels": ({"preprocessing": {"normalization": [{}, {}]}}, "2 normalisations for 1 channels"),
    "no mapping": ({"inference": 5}, "does not fit bare.pth: inference"),
    "an odd patch": ({"inference": {"patch": [9, 16, 16]}}, r"expected 3 multiples of 4, such as \(12, 16, 16\)"),
    "no patch": ({"inference": {"patch": [0, 16, 16]}}, "expected 3 multiples of 4"),
    "regions of softmax": ({"regions": [{"name": "liver", "values": [1]}], "inference": {"average": "softmax"}}, "fit"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit(bare: Path, name: str) -> None:
    task, message = REFUSED[name]
    with pytest.raises(UsageError, match=message):
        load(bare, task=task)


def test_another_network_s_task(bare: Path) -> None:
    model = load(bare).task.model.model_dump()
    assert load(bare, task={"model": model}).task.model.parameters == model["parameters"]
    with pytest.raises(UsageError, match="another network"):
        load(bare, task={"model": model | {"kernel_size": 5}})
