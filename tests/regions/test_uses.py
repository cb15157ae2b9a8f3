"""Regions through everything that is done with a network: scores, DICOM, training in FP32 and in INT8, engines."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import mednext_edge as mx
from mednext_edge.bundle import Manifest
from mednext_edge.checkpoints import load, save
from mednext_edge.data.dataset import Dataset, open_dataset
from mednext_edge.data.dicom import read_series
from mednext_edge.data.dicom_seg import SegIdentity, write_seg
from mednext_edge.errors import CheckpointError, UsageError
from mednext_edge.evaluation.validate import validate
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.quantize.sensitivity import _compare
from mednext_edge.task import Task
from mednext_edge.training.distill import Distillation
from mednext_edge.training.loop import train
from mednext_edge.training.loss import SMOOTH, SupervisedLoss, region_masks
from mednext_edge.training.objective import Batch, Supervised
from mednext_edge.training.plan import TrainingPlan
from mednext_edge.training.qat import QatOptions, as_trained, student
from mednext_edge.training.start import check_labels, start_network
from mednext_edge.training.state import RunFolder
from mednext_edge.training.task import make_task
from mednext_edge.training.validation import overlaps, pooled_dice
from tests.data.dicom_series import dciodvfy, make_slices, save_slices
from tests.training.blobs import plan, task_for

from .nested import PAINTED, REGIONS, VALUES, Bands, plain, write_nested

PATCH = (16, 16, 32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(write_nested(tmp_path_factory.mktemp("nested")))


@pytest.fixture(scope="module")
def task(dataset: Dataset) -> Task:
    """Of a network of two levels."""
    small = task_for(dataset, classes=3)
    inference = small.inference.model_copy(update={"average": "logits"})
    return Task.model_validate(small.model_dump() | {"inference": inference, "labels": PAINTED, "regions": REGIONS})


def scores(session: Bands, dataset: Dataset) -> dict[str, float | None]:
    accuracy = validate(session, dataset.validation, baseline=Bands()).accuracy
    assert accuracy is not None and accuracy.exported is not None
    return dict(accuracy.exported.dice_per_class)


def test_a_region_is_scored_whole(dataset: Dataset) -> None:
    """Where every voxel of the outermost region is taken for the innermost, the outermost is still all found."""
    found = scores(Bands(), dataset)
    assert list(found) == list(VALUES)
    assert all(dice is not None and dice > 0.97 for dice in found.values())
    greedy = scores(Bands((130, 130, 130)), dataset)
    assert greedy["kidney"] == found["kidney"]
    inner, outer = greedy["tumour"], found["kidney"]
    assert inner is not None and outer is not None
    assert inner < 0.3 < outer


def test_a_baseline_of_other_regions(dataset: Dataset) -> None:
    other = Bands()
    regions = [region.model_copy(update={"values": (other.task.labels[region.name],)}) for region in REGIONS]
    other.task = other.task.model_copy(update={"regions": tuple(regions)})
    with pytest.raises(UsageError, match="the baseline's regions"):
        validate(Bands(), dataset.validation, baseline=other)


def test_dicom_segments_hold_whole_regions(tmp_path: Path) -> None:
    like = read_series(save_slices(tmp_path / "in", make_slices(np.ones((4, 6, 7), np.int16))))
    labels = np.zeros(like.spatial, np.uint8)
    labels[1:3, 1:5, 1:6], labels[1:3, 2:4, 2:5], labels[2, 2, 3] = 1, 3, 2
    identity = SegIdentity.of(Bands().task, "0.1", "ab" * 32)
    write_seg(tmp_path / "out.dcm", labels, like, identity)
    assert dciodvfy(tmp_path / "out.dcm") == []
    seg = highdicom.seg.segread(tmp_path / "out.dcm")
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["kidney", "tumour", "masses"]
    counts = [int(seg.get_volume(segment_numbers=[n]).array.sum()) for n in (1, 2, 3)]
    assert counts == [int(np.isin(labels, VALUES[name]).sum()) for name in ("kidney", "tumour", "masses")]
    write_seg(tmp_path / "none.dcm", np.zeros(like.spatial, np.uint8), like, identity)
    assert len(highdicom.seg.segread(tmp_path / "none.dcm").SegmentSequence) == 3


@pytest.mark.parametrize("batch_dice", [False, True])
def test_the_loss_by_hand(batch_dice: bool) -> None:
    """Binary cross-entropy and Dice of every region, against float64."""
    generator = torch.Generator().manual_seed(0)
    values = tuple(VALUES.values())
    target = torch.randint(0, 4, (2, 1, 8, 8, 8), generator=generator).float()
    heads = [torch.randn(2, 3, 8 >> i, 8 >> i, 8 >> i, generator=generator, dtype=torch.float64) for i in range(2)]
    expected = torch.zeros((), dtype=torch.float64)
    for weight, logits, labels in zip((2 / 3, 1 / 3), heads, (target, target[..., ::2, ::2, ::2]), strict=True):
        truth = torch.stack([sum(labels[:, 0] == v for v in inside) for inside in values], 1).double()
        p, axes = logits.sigmoid(), (0, 2, 3, 4) if batch_dice else (2, 3, 4)
        dice = (2 * (p * truth).sum(axes) + SMOOTH) / (p.sum(axes) + truth.sum(axes) + SMOOTH)
        expected += weight * (1 - dice.mean() - (truth * p.log() + (1 - truth) * (1 - p).log()).mean())
    found = SupervisedLoss(regions=values, batch_dice=batch_dice)([head.float() for head in heads], target)
    assert found.item() == pytest.approx(expected.item(), rel=2e-6)
    perfect = 60 * (region_masks(target, values) - 0.5)
    assert SupervisedLoss(regions=values)([perfect], target).item() == pytest.approx(0, abs=1e-6)


def test_patch_dice_of_regions() -> None:
    target = torch.tensor([[[0, 1, 3, 2]]]).float()
    logits = torch.tensor([[[-1, 1, 1, -1], [-1, -1, -1, 1], [-1, -1, -1, -1]]]).float()
    # kidney: two of three, none wrong; masses: one of two; tumour: none of one.
    assert pooled_dice(overlaps(logits, target, tuple(VALUES.values()))) == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)


def test_the_teacher_s_regions_are_compared_one_by_one(task: Task) -> None:
    """The divergence is the mean of every region's own, inside against outside."""
    net, teacher = start_network(task, 0), start_network(task, 1)
    net.do_ds = teacher.do_ds = False  # type: ignore[assignment]
    batch = Batch(torch.randn(1, 1, *PATCH), torch.zeros(1, 1, *PATCH), 0)
    objective = Distillation(
        Supervised(SupervisedLoss(regions=tuple(VALUES.values()))), teacher, share=1.0, regions=True
    )
    with torch.no_grad():
        p, q = teacher(batch.images).double(), net(batch.images).double()
        inside = F.logsigmoid(p).exp() * (F.logsigmoid(p) - F.logsigmoid(q))
        outside = F.logsigmoid(-p).exp() * (F.logsigmoid(-p) - F.logsigmoid(-q))
        found = objective(net, batch).loss.item()
    assert found == pytest.approx((inside + outside).mean().item(), rel=1e-4)


def test_sensitivity_compares_regions() -> None:
    """Dice of regions whose logits never exclude each other."""
    exact = np.array([[[-1, 1, 1, 1], [-1, -1, 1, 1]]], np.float32).reshape(1, 2, 1, 1, 4)
    found = np.where(np.arange(4) == 3, -exact, exact)
    *_, drop = _compare([exact], iter([found]), regions=True)
    assert drop == pytest.approx(1 - (2 * 2 / 5 + 2 * 1 / 3) / 2)


def test_a_planned_task_has_an_output_a_region(dataset: Dataset) -> None:
    small = TrainingPlan(**{**plan().to_dict(), "patch": PATCH})
    found = make_task(dataset, small, plain())
    assert (found.model.classes, found.regions, found.inference.average) == (3, REGIONS, "logits")


@pytest.fixture(scope="module")
def trained(dataset: Dataset, task: Task, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("regions")
    teaching = plan(epochs=1, steps=60, batch=2, learning_rate=1e-2)
    save(folder / "model", train(dataset, task, teaching, folder / "run"))
    return load(folder / "model")


def test_training_finds_the_regions(trained: LoadedModel, dataset: Dataset) -> None:
    assert trained.task.regions == REGIONS
    accuracy = mx.validate(trained, dataset.validation).accuracy
    assert accuracy is not None and accuracy.exported is not None
    assert min(dice or 0 for dice in accuracy.exported.dice_per_class.values()) > 0.5


def test_data_of_values_that_no_region_holds(trained: LoadedModel, dataset: Dataset, tmp_path: Path) -> None:
    labels = {"background": 0, **{f"part {i}": i for i in range(1, 5)}}
    other = open_dataset(write_nested(tmp_path, 2, labels=labels, regions_class_order=None))
    with pytest.raises(CheckpointError, match=r"the label values \[4\]"):
        check_labels("nested", trained, other)


@pytest.mark.parametrize("target", ["openvino", "onnx", "native"])
def test_engines(trained: LoadedModel, dataset: Dataset, tmp_path: Path, target: str) -> None:
    bundle = mx.export(trained, target=target, precision="int8", calibration=dataset, out=tmp_path / "out")
    stated = Manifest.model_validate_json((bundle / "manifest.json").read_bytes())
    assert stated.task.regions == REGIONS
    report = mx.validate(bundle, dataset.validation, baseline=trained).accuracy
    assert report is not None and report.voxel_agreement is not None and report.exported is not None
    assert report.voxel_agreement > 0.98
    assert list(report.exported.dice_per_class) == list(VALUES)


def test_training_in_int8(trained: LoadedModel, dataset: Dataset, tmp_path: Path) -> None:
    """The engine gives what the network that was trained in INT8 gives."""
    options = QatOptions(calib_samples=2)
    teaching = plan(learning_rate=1e-3, start=options.name(trained))
    pupil = student(trained, dataset.training, options, RunFolder(tmp_path / "run", teaching, resume=False))
    objective = pupil.objective(batch_dice=False)
    result = train(dataset, trained.task, teaching, tmp_path / "run", net=pupil.net, objective=objective)
    save(tmp_path / "model", pupil.trained(result))
    model = load(tmp_path / "model")
    assert model.task.regions == REGIONS
    bundle = mx.export(model, target="openvino", precision="int8", patch=PATCH, out=tmp_path / "out")
    x = np.random.default_rng(0).standard_normal((1, 1, *PATCH)).astype(np.float32)
    with mx.open(bundle) as session, torch.no_grad():
        engine, twin = session.run(x), as_trained(model)(torch.from_numpy(x)).numpy()
    assert ((engine > 0) == (twin > 0)).mean() > 0.99
