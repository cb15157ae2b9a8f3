"""nnU-Net v2 folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mednext_edge.checkpoints import load
from mednext_edge.errors import CheckpointError
from tests.checkpoints.test_bare import reference, same_output
from tests.checkpoints.writers import SMALL, v2_dataset, v2_plans, write_nnunet_v2


@pytest.mark.parametrize("with_init_args", [True, False])
@pytest.mark.parametrize("part", ["", "fold_0", "fold_0/checkpoint_final.pth"])
def test_a_trainer_folder_a_fold_and_a_file(tmp_path: Path, part: str, with_init_args: bool) -> None:
    model = load(write_nnunet_v2(tmp_path, with_init_args=with_init_args) / part)
    assert same_output(model.net, reference())
    assert model.source.format == "nnunet-v2"
    assert model.source.file == "checkpoint_final.pth"
    task = model.task
    assert task.name == "Dataset017_Small"
    assert task.inference.patch == (16, 16, 16)
    assert task.inference.average == "logits"
    assert task.inference.mirror_axes == (0, 1, 2)
    assert task.preprocessing.spacing == (1.0, 1.5, 2.0)
    assert not task.preprocessing.normalize_after_resampling
    assert (task.preprocessing.image_order, task.preprocessing.label_order) == (3, 1)
    assert task.preprocessing.anisotropy_threshold == 3.0
    (entry,) = task.preprocessing.normalization
    assert (entry.scheme, entry.mean, entry.sd, entry.lower, entry.upper) == ("ct", 101.5, 39.25, -17.5, 201.0)
    assert task.labels == {"background": 0, "part_1": 1, "part_2": 2}


def test_a_file_that_left_its_folder(tmp_path: Path) -> None:
    root = write_nnunet_v2(tmp_path)
    expected = load(root).task
    moved = (root / "fold_0" / "checkpoint_final.pth").rename(tmp_path / "mine.pth")
    assert load(moved).task == expected


def test_weights_without_plans_are_a_state_dict(tmp_path: Path) -> None:
    root = write_nnunet_v2(tmp_path, with_init_args=False)
    moved = (root / "fold_0" / "checkpoint_final.pth").rename(tmp_path / "mine.pth")
    assert load(moved).source.format == "state-dict"
    (root / "dataset.json").unlink()
    with pytest.raises(CheckpointError, match=r"no dataset_json in the file, no dataset\.json"):
        load(root)


def test_the_final_weights_come_before_the_best(tmp_path: Path) -> None:
    root = write_nnunet_v2(tmp_path, fold="fold_all")
    assert any("fold_all/checkpoint_final.pth" in note for note in load(root).notes)
    (root / "fold_all" / "checkpoint_final.pth").unlink()
    assert any("fold_all/checkpoint_best.pth" in note for note in load(root).notes)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes(tmp_path: Path, prefix: str) -> None:
    assert same_output(load(write_nnunet_v2(tmp_path, prefix=prefix)).net, reference())


def test_two_dimensions(tmp_path: Path) -> None:
    config = replace(SMALL, spatial_dims=2)
    model = load(write_nnunet_v2(tmp_path, config))
    assert same_output(model.net, reference(config), config)
    assert model.task.inference.patch == (16, 16)
    assert model.task.preprocessing.spacing == (1.5, 2.0)
    assert len(model.task.preprocessing.transpose) == 3


@pytest.mark.parametrize("with_init_args", [True, False])
def test_a_configuration_that_inherits(tmp_path: Path, with_init_args: bool) -> None:
    root = write_nnunet_v2(tmp_path, configuration="3d_fullres_bs8", with_init_args=with_init_args)
    model = load(root)
    assert model.task.inference.patch == (16, 16, 16)
    assert "configuration 3d_fullres_bs8" in model.notes


def test_schemes_masks_and_resampling(tmp_path: Path) -> None:
    schemes = ["CT", "ZScore", "No", "RescaleTo01", "RGBTo01"]
    config = replace(SMALL, in_channels=5)
    plans = v2_plans(
        config,
        normalization_schemes=[f"{s}Normalization" for s in schemes],
        use_mask_for_norm=[True, True, False, False, False],
        resampling_fn_data_kwargs={"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": False},
    )
    recipe = load(write_nnunet_v2(tmp_path, config, plans=plans)).task.preprocessing
    assert [n.scheme for n in recipe.normalization] == ["ct", "zscore", "none", "rescale", "ct"]
    assert [n.masked for n in recipe.normalization] == [False, True, False, False, False]
    assert (recipe.normalization[4].mean, recipe.normalization[4].sd) == (0.0, 255.0)
    assert recipe.image_order == 1
    assert recipe.anisotropy_threshold > 1000


def test_no_resampling(tmp_path: Path) -> None:
    plans = v2_plans(SMALL, resampling_fn_data="no_resampling_data_or_seg_to_shape")
    assert load(write_nnunet_v2(tmp_path, plans=plans)).task.preprocessing.spacing is None


def test_other_resampling_is_noted(tmp_path: Path) -> None:
    plans = v2_plans(
        SMALL,
        resampling_fn_data="resample_torch_fornnunet",
        resampling_fn_data_kwargs={"is_seg": False, "order_z": 1, "force_separate_z": False},
    )
    notes = load(write_nnunet_v2(tmp_path, plans=plans)).notes
    assert any("resample_torch_fornnunet" in note for note in notes)
    assert any("nearest neighbours" in note for note in notes)


@pytest.mark.parametrize(("stated", "expected"), [((0, 1), (0, 1)), ((), ()), (None, (0, 1, 2))])
def test_mirror_axes(tmp_path: Path, stated: tuple[int, ...] | None, expected: tuple[int, ...]) -> None:
    model = load(write_nnunet_v2(tmp_path, mirror_axes=stated))
    assert model.task.inference.mirror_axes == expected
    assert any("may be mirrored" in note for note in model.notes) == (stated is None)


def test_the_ignore_label_is_no_class(tmp_path: Path) -> None:
    labels = {"background": 0, "a": 1, "b": [2], "ignore": 3}
    model = load(write_nnunet_v2(tmp_path, dataset=v2_dataset(SMALL, labels=labels)))
    assert model.task.labels == {"background": 0, "a": 1, "b": 2}


Change = Callable[[dict[str, Any], dict[str, Any]], Any]
CHANGES: dict[str, tuple[Change, str]] = {
    "regions": (
        lambda p, d: d.update(labels={"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2]),
        "1 input channels and 2 classes, the tensors for 1 and 3",
    ),
    "labels with a gap": (lambda p, d: d.update(labels={"background": 0, "a": 1, "b": 3}), "do not number 3 classes"),
    "other channels": (lambda p, d: d.update(channel_names={"0": "T1", "1": "T2"}), "2 input channels and 3 classes"),
    "other classes": (lambda p, d: d.update(labels={"background": 0, "a": 1}), "1 input channels and 2 classes"),
    "a region of nothing": (lambda p, d: d.update(labels={"background": 0, "a": [], "b": 2}), "at least 1 item"),
    "no labels": (lambda p, d: d.pop("labels"), "labels: Field required"),
    "a cascade": (lambda p, d: p["configurations"]["3d_fullres"].update(previous_stage="3d_lowres"), "cascade"),
    "an unknown scheme": (
        lambda p, d: p["configurations"]["3d_fullres"].update(normalization_schemes=["MyNormalization"]),
        "normalised by MyNormalization; known are ZScoreNormalization",
    ),
    "too many schemes": (
        lambda p, d: p["configurations"]["3d_fullres"].update(normalization_schemes=["ZScoreNormalization"] * 2),
        "normalise 2 channels; the dataset has 1",
    ),
    "no statistics": (lambda p, d: p.pop("foreground_intensity_properties_per_channel"), "no intensity statistics"),
    "no configuration": (lambda p, d: p["configurations"].pop("3d_fullres"), "unknown configuration .*`3d_fullres`"),
    "a circle": (
        lambda p, d: p["configurations"].update({"3d_fullres": {"inherits_from": "3d_fullres"}}),
        "inherit in a circle",
    ),
    "an odd parent": (
        lambda p, d: p["configurations"]["3d_fullres"].update(inherits_from=["2d"]),
        r"unknown configuration .*`\['2d'\]`",
    ),
    "no patch": (lambda p, d: p["configurations"]["3d_fullres"].pop("patch_size"), "patch_size: Field required"),
    "a 2-D spacing": (lambda p, d: p["configurations"]["3d_fullres"].update(spacing=[1, 1]), "expected 3 values"),
    "an order of 9": (
        lambda p, d: p["configurations"]["3d_fullres"].update(resampling_fn_data_kwargs={"order": 9}),
        "order",
    ),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_plans_that_do_not_fit(tmp_path: Path, change: Change, message: str) -> None:
    plans, dataset = v2_plans(SMALL), v2_dataset(SMALL)
    change(plans, dataset)
    with pytest.raises(CheckpointError, match=message):
        load(write_nnunet_v2(tmp_path, plans=plans, dataset=dataset))
