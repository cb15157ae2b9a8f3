"""What a run says about its data and what it refuses, before it has cost anything."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mednext_edge.data.dataset import Case, Dataset
from mednext_edge.data.volume import Volume, read_image
from mednext_edge.errors import CheckpointError, DataError, UsageError
from mednext_edge.task import Task
from mednext_edge.training.loop import train
from mednext_edge.training.objective import Batch, Network, Outcome
from mednext_edge.training.state import LAST

from .blobs import plan, same, task_for, weights


def test_resume_from_the_checkpoint_of_another_network(dataset: Dataset, task: Task, tmp_path: Path) -> None:
    """A checkpoint that was copied into the folder."""
    train(dataset, task, plan(), tmp_path / "run")
    for name, changes, words in (
        ("wide", {"channels": 8}, r"`stem\.weight` has shape \(8, .*\(4, "),
        ("grn", {"grn": True}, r"\.grn_beta` is only in the checkpoint"),
    ):
        train(dataset, task_for(dataset, **changes), plan(), tmp_path / name)
        shutil.copy(tmp_path / name / LAST, tmp_path / "run" / LAST)
        with pytest.raises(CheckpointError, match=rf"last\.pt: .*another network.*{words}"):
            train(dataset, task, plan(), tmp_path / "run", resume=True)
    with pytest.raises(UsageError, match="started on other data"):
        train(dataset, task_for(dataset, channels=8), plan(), tmp_path / "run", resume=True)


def test_a_broken_validation_case_shows_before_the_first_step(dataset: Dataset, task: Task, tmp_path: Path) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"\x1f\x8b but no gzip")
    held = Case("held", lambda: read_image(broken), dataset.validation[0].labels)
    with pytest.raises(DataError, match=r"broken\.nii\.gz cannot be read"):
        train(replace(dataset, validation=(held,)), task, plan(), tmp_path / "run")
    elsewhere = Case("held", dataset.validation[0].image, lambda: volume(labels=True))
    with pytest.raises(DataError, match="validation case held: found labels of shape"):
        train(replace(dataset, validation=(elsewhere,)), task, plan(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_unusual_is_said(dataset: Dataset, task: Task, tmp_path: Path) -> None:
    only = replace(dataset, training=(case("a", volume(), volume(labels=True, highest=1)),), validation=())
    notes: list[str] = []
    read: list[tuple[int, int]] = []
    model = train(only, task, plan(epochs=1), tmp_path / "run", on_note=notes.append, on_case=lambda *n: read.append(n))
    assert [note.split(":")[0] for note in notes] == [
        "the label `two` is in no training case",
        "there is one training case alone",
        "there is no case to validate on",
    ]
    assert read == [(1, 1)]
    assert same(weights(model), torch.load(tmp_path / "run" / LAST)["network_weights"])
    empty = case("a", volume(), volume(labels=True, highest=0))
    with pytest.raises(DataError, match="no training case has a voxel of foreground"):
        train(replace(dataset, training=(empty,)), task, plan(), tmp_path / "empty")


class Fixed(torch.nn.BatchNorm3d):
    """Keeps its statistics in training, as the norms of a network that is trained in INT8."""

    def train(self, mode: bool = True) -> Fixed:
        super().train(False)
        return self


def test_norms_over_a_batch_in_parts_are_said(dataset: Dataset, task: Task, tmp_path: Path) -> None:
    def supervise(net: Network, batch: Batch) -> Outcome:
        logits = net(batch.images)
        assert isinstance(logits, torch.Tensor)
        return Outcome(logits.square().mean(), logits)

    for layer, accumulate, words in (
        (torch.nn.BatchNorm3d(3), 2, ["this network has batch norms, which see 1 of the 2 patches"]),
        (torch.nn.BatchNorm3d(3), 1, []),
        (torch.nn.InstanceNorm3d(3), 2, []),
        (Fixed(3), 2, []),
    ):
        notes: list[str] = []
        net = torch.nn.Sequential(torch.nn.Conv3d(1, 3, 1), layer)
        out = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        chosen = plan(epochs=1, accumulate=accumulate)
        train(dataset, task, chosen, out, net=net, objective=supervise, on_note=notes.append)
        assert [note.split(" of a batch")[0] for note in notes] == words


@pytest.mark.parametrize(("accumulate", "pooled"), [(2, True), (2, False), (1, True)])
def test_the_dice_of_a_batch_in_parts_is_said(
    dataset: Dataset, task: Task, tmp_path: Path, accumulate: int, pooled: bool
) -> None:
    notes: list[str] = []
    chosen = plan(epochs=1, accumulate=accumulate, batch_dice=pooled)
    train(dataset, task, chosen, tmp_path / "run", on_note=notes.append)
    words = ["the Dice in the loss is that of 1 of the 2 patches"] if accumulate > 1 and pooled else []
    assert [note.split(" of a batch")[0] for note in notes] == words


def test_a_loss_that_is_not_finite_stops_the_run(dataset: Dataset, task: Task, tmp_path: Path) -> None:
    def broken(net: Network, batch: Batch) -> Outcome:
        logits = net(batch.images)[0]
        return Outcome(logits.sum() * (float("nan") if batch.step == 2 else 1e-6), logits)

    with pytest.raises(DataError, match="the loss became nan at step 3; lower --lr, or use --amp fp32"):
        train(dataset, task, plan(), tmp_path / "run", objective=broken)
    # What was whole before stays, and is free of NaN.
    saved = torch.load(tmp_path / "run" / LAST, weights_only=True)
    assert saved["counters"]["step"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in saved["network_weights"].values())


def case(name: str, image: Volume, labels: Volume | None) -> Case:
    return Case(name, lambda: image, None if labels is None else lambda: labels)


def volume(labels: bool = False, highest: int = 2, channels: int = 1) -> Volume:
    shape = (20, 20, 20)
    if labels:
        array = np.zeros(shape, np.uint8)
        array[5:9, 5:9, 5:9] = highest
        return Volume(array, np.eye(4))
    return Volume(np.random.default_rng(0).normal(size=(channels, *shape)).astype(np.float32), np.eye(4))


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ((), "found no training case"),
        ((case("a", volume(), None),), "training case a has no labels"),
        ((case("a", volume(), volume(labels=True, highest=3)),), "a holds the label 3"),
        ((case("a", volume(channels=2), volume(labels=True)),), "2 channels; expected 1"),
    ],
)
def test_unusable_cases_leave_no_run(
    dataset: Dataset, task: Task, tmp_path: Path, cases: tuple[Case, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        train(replace(dataset, training=cases), task, plan(), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_validation_without_labels_is_refused(dataset: Dataset, task: Task, tmp_path: Path) -> None:
    bare = replace(dataset, validation=(case("v", volume(), None),))
    with pytest.raises(DataError, match="validation case v has no labels"):
        train(bare, task, plan(), tmp_path / "run")
