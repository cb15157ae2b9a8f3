"""Training in INT8: from a checkpoint to an engine that gives what was trained."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from mednext_edge.checkpoints import load, save
from mednext_edge.data.dataset import Dataset
from mednext_edge.errors import CheckpointError, UsageError
from mednext_edge.export.export import export
from mednext_edge.export.targets import BuildOptions
from mednext_edge.fusion import fuse
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.runtime import engines
from mednext_edge.task import Task
from mednext_edge.training.distill import Distillation, divergence
from mednext_edge.training.loop import train
from mednext_edge.training.loss import SupervisedLoss
from mednext_edge.training.objective import Batch, Supervised
from mednext_edge.training.qat import FILE, QatOptions, Start, Student, as_trained, student
from mednext_edge.training.start import start_network
from mednext_edge.training.state import RunFolder
from tests.quantize.outliers import with_outliers

from .blobs import plan

PATCH = (32, 32, 16)
OPTIONS = QatOptions(calib_samples=2)


@pytest.fixture(scope="module")
def checkpoint(dataset: Dataset, task: Task, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A network trained for some steps, as a file."""
    folder = tmp_path_factory.mktemp("teacher")
    teaching = plan(steps=10, learning_rate=3e-3, validate_every=9)
    save(folder / "model", train(dataset, task, teaching, folder / "run"))
    return load(folder / "model")


def begin(model: LoadedModel, dataset: Dataset, out: Path, *, resume: bool = False, **changes: int) -> Student:
    folder = RunFolder(out, in_int8(model, **changes), resume=resume)
    return student(model, dataset.training, OPTIONS, folder)


def in_int8(model: LoadedModel, **changes: int) -> object:
    return plan(learning_rate=1e-3, start=OPTIONS.name(model), **changes)


@pytest.fixture(scope="module")
def trained(checkpoint: LoadedModel, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that two epochs in INT8 leave."""
    folder = tmp_path_factory.mktemp("int8")
    pupil = begin(checkpoint, dataset, folder / "run")
    objective = pupil.objective(batch_dice=False)
    result = train(dataset, checkpoint.task, in_int8(checkpoint), folder / "run", net=pupil.net, objective=objective)
    save(folder / "model", pupil.trained(result))
    return folder / "model"


def test_weights_and_thresholds_are_learnt_and_survive_the_file(checkpoint: LoadedModel, trained: Path) -> None:
    model = load(trained)
    assert model.quantization is not None
    assert model.quantization.weight_levels == 63
    assert {"stem", "enc_block_0.0.conv1", "enc_block_0.0.norm", "up_0.conv1", "out_0.conv_out"} <= set(
        model.quantization.thresholds
    )
    before, after = checkpoint.net.state_dict(), model.net.state_dict()
    assert set(before) == set(after)
    assert not torch.equal(before["stem.weight"], after["stem.weight"])
    started = Start.model_validate_json((trained.parent / "run" / FILE).read_bytes()).quantization
    assert started.thresholds.keys() == model.quantization.thresholds.keys()
    assert started.thresholds != model.quantization.thresholds


def test_the_engine_gives_the_labels_that_were_trained(trained: Path, tmp_path: Path) -> None:
    model = load(trained)
    twin = as_trained(model)
    bundle = export(model, target="openvino", precision="int8", patch=PATCH, out=tmp_path / "bundle")
    exact = fuse(model).net
    rng = np.random.default_rng(0)
    shape = (1, model.task.model.in_channels, *PATCH)
    same = moved = 0
    with engines.open(bundle) as session:
        for _ in range(3):
            x = rng.standard_normal(shape).astype(np.float32)
            with torch.no_grad():
                mine = twin(torch.from_numpy(x)).numpy()
                plain = exact(torch.from_numpy(x)).numpy()
            engine = session.run(x)
            same += int((engine.argmax(1) == mine.argmax(1)).sum())
            moved += int((plain.argmax(1) != mine.argmax(1)).sum())
    voxels = 3 * np.prod(PATCH)
    assert moved > 0, "INT8 changed nothing, so that agreement says nothing"
    assert same >= 0.999 * voxels


@pytest.mark.parametrize("target", ["onnx", "trt"])
def test_other_targets_take_what_was_learnt(target: str, trained: Path, tmp_path: Path) -> None:
    model = load(trained)
    build = BuildOptions(defer=target == "trt")
    bundle = export(
        model, target=target, precision="int8", patch=PATCH, out=tmp_path / "b", int8_layers=("thin",), build=build
    )
    graph = onnx.load(next(bundle.glob("*.onnx"))).graph
    found = {init.name: numpy_helper.to_array(init) for init in graph.initializer}
    integers = found["stem.weight"]
    assert integers.dtype == np.int8
    assert np.abs(integers).max() == 63
    assert model.quantization is not None
    threshold = model.quantization.thresholds["stem"]
    scales = [value for name, value in found.items() if name.endswith("_int8_0_scale")]  # of activations
    assert any(float(scale) * 127 == pytest.approx(threshold, rel=1e-3) for scale in scales)


def test_a_killed_run_goes_on_as_if_it_had_not_been(checkpoint: LoadedModel, dataset: Dataset, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(progress: object) -> None:
        if progress.step == 3:  # type: ignore[attr-defined]
            raise Killed

    def run(out: Path, *, resume: bool = False, on_step: object = lambda _: None) -> LoadedModel:
        pupil = begin(checkpoint, dataset, out, resume=resume)
        objective = pupil.objective(batch_dice=False)
        result = train(
            dataset,
            checkpoint.task,
            in_int8(checkpoint),
            out,
            net=pupil.net,
            objective=objective,
            resume=resume,
            on_step=on_step,
        )
        return pupil.trained(result)

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "cut", on_step=kill)
    again = run(tmp_path / "cut", resume=True)
    assert again.quantization == whole.quantization
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(again.net.state_dict()[name], tensor), name


def test_thresholds_of_another_network_are_refused(checkpoint: LoadedModel, dataset: Dataset, tmp_path: Path) -> None:
    begin(checkpoint, dataset, tmp_path)
    RunFolder(tmp_path, in_int8(checkpoint), resume=False).begin(checkpoint.task, dataset)
    start = '{"quantization": {"weight_levels": 63, "thresholds": {"%s": %f}}, "octaves": []}'
    (tmp_path / FILE).write_text(start % ("encoder.7", 1.0))
    with pytest.raises(CheckpointError, match="another network"):
        begin(checkpoint, dataset, tmp_path, resume=True)
    (tmp_path / FILE).write_text(start % ("stem", -1.0))
    with pytest.raises(CheckpointError, match="damaged"):
        begin(checkpoint, dataset, tmp_path, resume=True)


def test_outlier_channels_are_scaled_once(checkpoint: LoadedModel, dataset: Dataset, tmp_path: Path) -> None:
    """A run that was killed before its first epoch starts from the same weights."""
    hard = with_outliers(checkpoint, factor=64.0)
    first = begin(hard, dataset, tmp_path)
    octaves = Start.model_validate_json((tmp_path / FILE).read_bytes()).octaves
    assert min(octaves[0]) < -3
    RunFolder(tmp_path, in_int8(hard), resume=False).begin(hard.task, dataset)
    again = begin(hard, dataset, tmp_path, resume=True)
    for name, tensor in first.net.state_dict().items():
        assert torch.equal(again.net.state_dict()[name], tensor), name
    stem = "stem.parametrizations.weight.original"
    assert not torch.equal(first.net.state_dict()[stem], hard.net.state_dict()["stem.weight"])


def test_only_an_fp32_checkpoint_can_be_trained_in_int8(checkpoint: LoadedModel, trained: Path) -> None:
    with pytest.raises(UsageError, match="INT8 already"):
        OPTIONS.check(load(trained))
    with pytest.raises(UsageError, match="rewrites"):
        OPTIONS.check(fuse(checkpoint))


def test_a_network_that_was_not_trained_in_int8_has_no_twin(checkpoint: LoadedModel) -> None:
    with pytest.raises(UsageError, match="was not trained in INT8"):
        as_trained(checkpoint)


def test_another_start_is_another_plan(checkpoint: LoadedModel) -> None:
    names = {
        OPTIONS.name(checkpoint),
        QatOptions().name(checkpoint),
        QatOptions(target="trt").name(checkpoint),
        QatOptions(int8_layers=("pointwise",)).name(checkpoint),
        OPTIONS.name(replace(checkpoint, source=checkpoint.source.model_copy(update={"sha256": "1" * 64}))),
    }
    assert len(names) == 5


def test_divergence_is_kullback_leibler_s() -> None:
    torch.manual_seed(0)
    mine, theirs = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    p, q = theirs.softmax(1).double(), mine.softmax(1).double()
    expected = (p * (p / q).log()).sum(1).mean()
    assert float(divergence(mine, theirs)) == pytest.approx(float(expected), rel=1e-5)
    assert float(divergence(mine, mine)) == 0.0


def test_the_teacher_pulls_on_every_output(task: Task) -> None:
    """With the whole share the loss is zero for the teacher itself and grows with each of the outputs."""
    net = start_network(task, 0)
    objective = Distillation(Supervised(SupervisedLoss()), copy.deepcopy(net), share=1.0)
    batch = Batch(torch.randn(1, 1, 16, 16, 16), torch.zeros(1, 1, 16, 16, 16), 0)
    assert float(objective(net, batch).loss.detach()) == pytest.approx(0.0, abs=1e-9)
    losses = []
    for i in range(3):
        moved = copy.deepcopy(net)
        with torch.no_grad():
            moved.get_submodule(f"out_{i}.conv_out").get_parameter("bias")[0] += 3
        losses.append(float(objective(moved, batch).loss.detach()))
    assert losses[0] > losses[1] > losses[2] > 0
