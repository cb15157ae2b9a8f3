"""What regions are: read from nnU-Net's files, written back, and turned into a label map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import mednext_edge as mx
from mednext_edge.checkpoints import load
from mednext_edge.checkpoints.ensemble import ensemble
from mednext_edge.checkpoints.write_nnunet_v2 import write_nnunet_v2 as write_back
from mednext_edge.data.dataset import open_dataset
from mednext_edge.data.recipe import prepare, restore
from mednext_edge.data.resample import resample
from mednext_edge.data.volume import Volume
from mednext_edge.errors import CheckpointError, DataError, UsageError
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.models.logits import decided, foreground_masks
from mednext_edge.models.module import ModuleSpec
from mednext_edge.regions import read_regions, write_regions
from mednext_edge.runtime.predictor import Predictor
from mednext_edge.task import Paint, Task
from tests.checkpoints.writers import SMALL, v2_dataset, write_nnunet_v2

from .nested import LABELS, ORDER, PAINTED, PAINTS, REGIONS, VALUES, Bands, plain, write_nested

EDGES = (130, 190, 250)


@pytest.fixture
def model(tmp_path: Path) -> LoadedModel:
    dataset = v2_dataset(SMALL, labels=LABELS, regions_class_order=ORDER)
    return load(write_nnunet_v2(tmp_path / "checkpoint", dataset=dataset))


def test_nnunet_s_labels_both_ways() -> None:
    labels, regions = read_regions(LABELS, ORDER)
    assert (labels, regions) == (PAINTED, REGIONS)
    assert list(labels) == ["background", "kidney", "tumour", "masses"]
    assert write_regions(labels, regions) == (LABELS, ORDER)


REFUSED: dict[str, tuple[dict[str, Any], list[int] | None, str]] = {
    "no order": (LABELS, None, "no regions_class_order; expected a value for each of 3"),
    "a short order": (LABELS, [1, 2], "expected the values 1 to 3"),
    "a value twice": (LABELS, [1, 1, 2], "expected the values 1 to 3"),
    "another's value": (LABELS, [1, 2, 3], "`tumour` holds the values .2. and is written as 3"),
    "a value of no region": (LABELS | {"kidney": [1, 2, 3, 4]}, ORDER, "expected values of"),
    "no background": ({"kidney": [1, 2], "tumour": 2}, [1, 2], "the background"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_regions_that_say_too_little(tmp_path: Path, name: str) -> None:
    """By a checkpoint and by a data set, each with its own error."""
    labels, order, message = REFUSED[name]
    changes = {"labels": labels, "regions_class_order": order}
    with pytest.raises(CheckpointError, match=message):
        load(write_nnunet_v2(tmp_path / "checkpoint", dataset=v2_dataset(SMALL, **changes)))
    with pytest.raises(DataError, match=message):
        open_dataset(write_nested(tmp_path / "data", 2, **changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": LABELS | {"masses": [2, "3"]}}, "`masses: "),
        ({"labels": LABELS | {"masses": []}}, "`masses: "),
        ({"labels": LABELS | {"ignore": 4}}, "ignore"),
        ({"regions_class_order": "1, 3, 2"}, "expected a list of values"),
    ],
)
def test_data_with_odd_regions(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(write_nested(tmp_path / "data", 2, **change))


def test_lists_of_one_value_are_labels(tmp_path: Path) -> None:
    labels = {"background": 0, "kidney": [1], "tumour": [2], "masses": 3}
    found = open_dataset(write_nested(tmp_path / "data", 2, labels=labels, regions_class_order=None))
    assert (found.labels, found.regions) == ({"background": 0, "kidney": 1, "tumour": 2, "masses": 3}, ())


def test_a_data_set(tmp_path: Path) -> None:
    found = open_dataset(write_nested(tmp_path / "data"))
    assert (found.labels, found.regions) == (PAINTED, REGIONS)


def test_a_checkpoint(model: LoadedModel) -> None:
    task = model.task
    assert (task.labels, task.regions, task.masks) == (PAINTED, REGIONS, VALUES)
    assert (task.paints, task.score_channels, task.inference.average) == (PAINTS, 3, "logits")


def test_other_regions_than_the_tensors_have(tmp_path: Path) -> None:
    dataset = v2_dataset(SMALL, labels={"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2])
    with pytest.raises(CheckpointError, match=r"1 input channels and 2 classes, the tensors for 1 and 3"):
        load(write_nnunet_v2(tmp_path / "checkpoint", dataset=dataset))


def test_back_to_nnunet_v2(model: LoadedModel, tmp_path: Path) -> None:
    write_back(tmp_path / "out", model)
    assert load(tmp_path / "out").task == model.task


def test_folds_average_logits(model: LoadedModel) -> None:
    both = ensemble([model, model])
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(both.net(x), model.net(x))
    assert both.task.regions == REGIONS


def test_a_label_map_by_hand() -> None:
    """[region, voxel]: none, the first, the second without the first, all, and the last two."""
    logits = np.array([[-1, 1, -1, 1, 0], [-1, -1, 2, 1, 1], [-1, -1, -1, 1, 3]], np.float32)[np.newaxis]
    assert decided(logits, PAINTS).tolist() == [[0, 1, 3, 2, 2]]
    assert foreground_masks(logits, regions=True).tolist() == (logits > 0).tolist()
    assert foreground_masks(logits).tolist() == [
        [[False, False, True, False, False], [False, False, False, False, True]]
    ]


def test_prediction_is_painted_region_by_region() -> None:
    volume = Volume(np.random.default_rng(0).normal(190, 60, (1, 18, 20, 17)).astype(np.float32), np.eye(4))
    predictor = Predictor(Bands(), mirror=True)
    found = predictor.predict(volume)
    np.testing.assert_array_equal(found, np.select([volume.array[0] > edge for edge in (250, 190, 130)], [2, 3, 1], 0))
    assert found.dtype == np.uint8
    probabilities = predictor.probabilities(prepare(volume, plain()).image)
    expected = 1 / (1 + np.exp(np.reshape([130, 190, 250], (3, 1, 1, 1)) - volume.array.astype(np.float64)))
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_logits_are_resampled_not_labels() -> None:
    """Between a voxel of all regions and one of none lies the outermost, as nnU-Net's linear resampling has it."""
    array = np.full((1, 16, 16, 8), 100, np.float32)
    array[..., 4:] = 300
    volume = Volume(array, np.diag([1.0, 1, 1, 1]))
    recipe = plain(spacing=(1, 1, 2), image_order=1)
    prepared = prepare(volume, recipe)
    scores = np.stack([resample(prepared.image[0] - edge, (16, 16, 8), 1, prepared.grid.apart) for edge in EDGES])
    found = Predictor(Bands(preprocessing=recipe)).predict(volume)
    np.testing.assert_array_equal(found, decided(scores[np.newaxis], PAINTS)[0])
    assert found[0, 0].tolist()[3:5] == [1, 3]
    assert restore(np.zeros((3, 16, 16, 4), np.float32), prepared, PAINTS).max() == 0


def reordered(task: Task) -> Task:
    """The same regions of a network that answers with the innermost first, as MONAI's bundles for BraTS do."""
    regions = [region.model_copy(update={"output": 2 - n}) for n, region in enumerate(REGIONS)]
    return Task.model_validate(task.model_dump() | {"regions": regions})


def test_outputs_in_another_order_than_they_are_painted(model: LoadedModel, tmp_path: Path) -> None:
    task = reordered(model.task)
    assert task.paints == (Paint(2, 1), Paint(1, 3), Paint(0, 2))
    assert [region.name for region in task.by_output] == ["tumour", "masses", "kidney"]
    assert task.values_by_output == ((2,), (2, 3), (1, 2, 3))
    logits = np.random.default_rng(0).normal(size=(2, 3, 5, 6, 7))
    np.testing.assert_array_equal(decided(logits[:, ::-1], task.paints), decided(logits, PAINTS))
    notes = write_back(tmp_path / "out", replace(model, task=task))
    assert any("nnU-Net paints regions in the order of the outputs" in note for note in notes)
    assert load(tmp_path / "out").task.by_output == tuple(r.model_copy(update={"output": None}) for r in task.by_output)


def test_a_module_of_one_s_own() -> None:
    net = torch.nn.Conv3d(1, 3, 1)
    spec = ModuleSpec(name="own", in_channels=1, classes=3, patch=(8, 8, 8), labels=PAINTED, regions=REGIONS)
    task = LoadedModel.from_module(net, spec).task
    assert (task.paints, task.inference.average) == (PAINTS, "logits")


def test_a_bare_checkpoint_with_the_caller_s_regions(tiny_model: LoadedModel, tmp_path: Path) -> None:
    torch.save(tiny_model.net.state_dict(), tmp_path / "bare.pth")
    plain = mx.load(tmp_path / "bare.pth")
    assert not plain.task.regions
    model = mx.load(tmp_path / "bare.pth", task={"labels": PAINTED, "regions": REGIONS})
    assert (model.task.paints, model.task.inference.average) == (PAINTS, "logits")
    with pytest.raises(UsageError, match="number 3 classes"):
        mx.load(tmp_path / "bare.pth", labels=PAINTED, task={"regions": REGIONS[:2]})
    with pytest.raises(UsageError, match="are not the labels"):
        mx.load(tmp_path / "bare.pth", labels={"background": 0, "a": 1, "b": 2, "c": 3}, task={"regions": REGIONS})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regions": REGIONS[:2]}, "number 3 classes"),
        ({"labels": {"background": 0, "kidney": 1, "tumour": 2, "other": 3}}, "are not the labels"),
        ({"labels": {"background": 0, "kidney": 2, "tumour": 1, "masses": 3}}, "leaves the label 1"),
        ({"regions": [REGIONS[0], REGIONS[1], REGIONS[2].model_copy(update={"output": 0})]}, "each channel once"),
        ({"average": "softmax"}, "average logits"),
        ({"kind": "classification"}, "segmentations"),
    ],
)
def test_tasks_that_cannot_be(model: LoadedModel, change: dict[str, Any], message: str) -> None:
    fields = model.task.model_dump()
    fields["inference"]["average"] = change.pop("average", "logits")
    fields["model"]["kind"] = change.pop("kind", "segmentation")
    with pytest.raises(ValidationError, match=message):
        Task.model_validate(fields | change)
