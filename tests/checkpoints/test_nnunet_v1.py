"""nnU-Net v1 folders."""

from __future__ import annotations

import pickle
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mednext_edge.checkpoints import load
from mednext_edge.errors import CheckpointError, UnsafePickleError
from tests.checkpoints.test_bare import reference, same_output
from tests.checkpoints.writers import SMALL, network, v1_plans, write_nnunet_v1


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("part", ["", "fold_0", "fold_0/model_final_checkpoint.model"])
def test_a_trainer_folder_a_fold_and_a_file(tmp_path: Path, part: str, legacy: bool) -> None:
    model = load(write_nnunet_v1(tmp_path, legacy=legacy) / part)
    assert same_output(model.net, reference())
    assert model.source.format == "nnunet-v1"
    assert model.source.file == "model_final_checkpoint.model"
    task = model.task
    assert task.name == "Task017_Small"
    assert task.inference.patch == (16, 16, 16)
    assert task.inference.average == "softmax"
    assert task.inference.mirror_axes == (0, 1, 2)
    assert task.preprocessing.spacing == (1.0, 1.5, 2.0)
    assert task.preprocessing.normalize_after_resampling
    assert task.preprocessing.crop_nonzero
    assert task.preprocessing.orientation is None
    (entry,) = task.preprocessing.normalization
    assert (entry.scheme, entry.mean, entry.sd, entry.lower, entry.upper) == ("ct", 101.5, 39.25, -17.5, 201.0)
    assert task.labels == {"background": 0, "class_1": 1, "class_2": 2}
    assert any(note.startswith("weights taken from") for note in model.notes) == (not part.endswith(".model"))


@pytest.mark.parametrize(
    ("folds", "expected"),
    [
        (("fold_0", "all"), "fold_0"),
        (("fold_10", "fold_2"), "fold_2"),
        (("all",), "all"),
        (("fold_3", "all"), "fold_3"),
    ],
)
def test_the_choice_of_fold_is_stated(tmp_path: Path, folds: tuple[str, ...], expected: str) -> None:
    root = write_nnunet_v1(tmp_path, fold=folds[0])
    for fold in folds[1:]:
        shutil.copytree(root / folds[0], root / fold)
    assert any(n.startswith(f"weights taken from {expected}/model_final") for n in load(root).notes)


def test_the_best_weights_when_there_are_no_final_ones(tmp_path: Path) -> None:
    root = write_nnunet_v1(tmp_path, files=("model_best",))
    assert load(root).source.file == "model_best.model"


@pytest.mark.parametrize("plans_inside", [True, False])
def test_plans_inside_the_pickle_or_above_it(tmp_path: Path, plans_inside: bool) -> None:
    root = write_nnunet_v1(tmp_path, plans_inside=plans_inside)
    expected = load(root).task
    if plans_inside:
        (root / "plans.pkl").unlink()
    else:
        (root / "fold_0" / "model_final_checkpoint.model.pkl").unlink()
    assert load(root).task == expected


def test_weights_alone_are_a_state_dict(tmp_path: Path) -> None:
    root = write_nnunet_v1(tmp_path)
    (root / "plans.pkl").unlink()
    (root / "fold_0" / "model_final_checkpoint.model.pkl").unlink()
    model = load(root)
    assert model.source.format == "state-dict"
    assert any("says nothing of images" in note for note in model.notes)


def test_a_pickle_without_plans_asks_for_them(tmp_path: Path) -> None:
    root = write_nnunet_v1(tmp_path, plans_inside=False)
    (root / "plans.pkl").unlink()
    with pytest.raises(CheckpointError, match=r"no plans in .* no plans\.pkl"):
        load(root)


def test_data_parallel_prefix(tmp_path: Path) -> None:
    assert same_output(load(write_nnunet_v1(tmp_path, prefix="module.")).net, reference())


def test_two_dimensions(tmp_path: Path) -> None:
    config = replace(SMALL, spatial_dims=2)
    model = load(write_nnunet_v1(tmp_path, config))
    assert same_output(model.net, reference(config), config)
    assert model.task.inference.patch == (16, 16)
    assert model.task.inference.mirror_axes == (0, 1)
    assert model.task.preprocessing.spacing == (1.5, 2.0)
    assert model.task.preprocessing.transpose == (0, 1, 2)


def test_the_stage_is_the_trainers(tmp_path: Path) -> None:
    plans = v1_plans(SMALL)
    stage = plans["plans_per_stage"][0]
    plans["plans_per_stage"] = OrderedDict({0: stage, 1: stage | {"patch_size": np.array([8, 24, 32])}})
    for number, patch in ((0, (16, 16, 16)), (1, (8, 24, 32))):
        root = write_nnunet_v1(tmp_path / str(number), plans=plans, stage=number)
        assert load(root).task.inference.patch == patch
    with pytest.raises(CheckpointError, match=r"of stage 2; the plans have the stages \[0, 1\]"):
        load(write_nnunet_v1(tmp_path / "2", plans=plans, stage=2))
    root = write_nnunet_v1(tmp_path / "unstated", plans=plans)
    (root / "fold_0" / "model_final_checkpoint.model.pkl").unlink()
    model = load(root)
    assert model.task.inference.patch == (8, 24, 32)
    assert any("took 1 of [0, 1]" in note for note in model.notes)


def test_channels_schemes_masks_and_axes(tmp_path: Path) -> None:
    config = replace(SMALL, in_channels=4)
    plans = v1_plans(
        config,
        normalization_schemes=OrderedDict({0: "CT", 1: "nonCT", 2: "noNorm", 3: "MRI"}),
        use_mask_for_norm=OrderedDict({0: False, 1: True, 2: False, 3: np.bool_(True)}),
        transpose_forward=np.array([2, 0, 1]),
        preprocessor_name="GenericPreprocessor_linearResampling",
    )
    task = load(write_nnunet_v1(tmp_path, config, plans=plans)).task
    entries = task.preprocessing.normalization
    assert [(n.scheme, n.masked) for n in entries] == [
        ("ct", False),
        ("zscore", True),
        ("none", False),
        ("zscore", True),
    ]
    assert task.preprocessing.transpose == (2, 0, 1)
    assert task.preprocessing.image_order == 1


def test_a_patch_that_does_not_fit_is_rounded_up(tmp_path: Path) -> None:
    plans = v1_plans(SMALL)
    plans["plans_per_stage"][0]["patch_size"] = np.array([10, 16, 17])
    model = load(write_nnunet_v1(tmp_path, plans=plans))
    assert model.task.inference.patch == (12, 16, 20)
    assert any("(10, 16, 17) rounded up to (12, 16, 20)" in note for note in model.notes)


def test_the_trainers_name_is_a_cross_check(tmp_path: Path) -> None:
    assert any("the tensors decide" in n for n in load(write_nnunet_v1(tmp_path, trainer="T_MedNeXt_L_kernel5")).notes)
    root = write_nnunet_v1(tmp_path / "b", trainer="nnUNetTrainerV2_noMirroring")
    model = load(root)
    assert not any("the tensors decide" in n for n in model.notes)
    assert model.task.inference.mirror_axes == ()


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "other channels": (lambda p: p.update(num_modalities=2), "2 input channels and 3 classes, the tensors for 1 and 3"),
    "other classes": (lambda p: p.update(num_classes=5), "1 input channels and 6 classes"),
    "no stages": (lambda p: p.pop("plans_per_stage"), r"not nnU-Net v1 plans: plans_per_stage: Field required"),
    "no statistics": (lambda p: p.update(dataset_properties={}), "no intensity statistics"),
    "CT2": (lambda p: p["normalization_schemes"].update({0: "CT2"}), "CT2"),
    "a bad permutation": (lambda p: p.update(transpose_forward=[0, 0, 1]), "permutation"),
    "a huge patch": (lambda p: p["plans_per_stage"][0].update(patch_size=[2**40] * 3), "patch_size"),
    "a 2-D patch": (lambda p: p["plans_per_stage"][0].update(patch_size=[16, 16]), "does not have 3 axes"),
    "a NaN spacing": (lambda p: p["plans_per_stage"][0].update(current_spacing=[1, 1, float("nan")]), "spacing"),
    "too few spacings": (lambda p: p["plans_per_stage"][0].update(current_spacing=[1, 1]), "expected 3 values"),
    "no scheme": (lambda p: p.update(normalization_schemes={}), "no normalisation for channel 0"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_plans_that_do_not_fit(tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    plans = v1_plans(SMALL)
    change(plans)
    with pytest.raises(CheckpointError, match=message):
        load(write_nnunet_v1(tmp_path, plans=plans))


def test_a_hostile_pickle_beside_the_weights(tmp_path: Path) -> None:
    root = write_nnunet_v1(tmp_path)
    (root / "fold_0" / "model_final_checkpoint.model.pkl").write_bytes(
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R."
    )
    with pytest.raises(UnsafePickleError, match=r"os\.system"):
        load(root)


def test_a_pickle_of_something_else(tmp_path: Path) -> None:
    root = write_nnunet_v1(tmp_path)
    (root / "fold_0" / "model_final_checkpoint.model.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(CheckpointError, match="holds a list"):
        load(root)


def test_the_weights_outlive_the_file(tmp_path: Path) -> None:
    root = write_nnunet_v1(tmp_path)
    model = load(root)
    with (root / "fold_0" / "model_final_checkpoint.model").open("r+b") as file:
        file.write(bytes(20_000))
    expected = network().state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in model.net.state_dict().items())
