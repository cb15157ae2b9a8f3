"""Folders as nnU-Net v1 and v2 leave them behind, around a small MedNeXt with random weights.

Keys, nesting and value types (numpy scalars in the logs, arrays in the plans, the trainer's argument tuple)
are those of the trainers; only the network is small.
"""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mednext_edge.models.config import MedNeXtConfig
from mednext_edge.models.mednext import MedNeXt

SMALL = MedNeXtConfig(
    channels=4,
    classes=3,
    blocks=(1,) * 5,
    expansion=(2,) * 5,
    down_expansion=(2, 2),
    down_grn=(False,) * 2,
    deep_supervision=True,
)
"""Two levels, 4 channels: built in milliseconds."""


def network(config: MedNeXtConfig = SMALL, seed: int = 0) -> MedNeXt:
    """A MedNeXt with random weights, GRN included, which starts at zero otherwise."""
    torch.manual_seed(seed)
    net = MedNeXt(config)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "grn" in name:
                parameter.normal_()
    return net


def v1_plans(config: MedNeXtConfig, **changes: Any) -> dict[str, Any]:
    """nnU-Net v1 plans of one stage (`changes` replace entries)."""
    dims, channels = config.spatial_dims, config.in_channels
    properties = OrderedDict(
        (
            channel,
            OrderedDict(
                mean=np.float32(101.5),
                sd=np.float64(39.25),
                mn=np.float32(-300),
                mx=np.float32(900),
                median=np.float32(99),
                percentile_00_5=np.float32(-17.5),
                percentile_99_5=np.float64(201.0),
            ),
        )
        for channel in range(channels)
    )
    stage = {
        "batch_size": 2,
        "num_pool_per_axis": [5] * dims,
        "patch_size": np.array([16] * dims),
        "median_patient_size_in_voxels": np.array([40, 56, 40]),
        "current_spacing": np.array([1.0, 1.5, 2.0]),
        "original_spacing": np.array([1.0, 1.0, 1.0]),
        "do_dummy_2D_data_aug": np.bool_(False),
        "pool_op_kernel_sizes": [[2] * dims] * 5,
        "conv_kernel_sizes": [[3] * dims] * 6,
    }
    return {
        "num_stages": 1,
        "num_modalities": channels,
        "modalities": dict.fromkeys(range(channels), "CT"),
        "normalization_schemes": OrderedDict.fromkeys(range(channels), "CT"),
        "dataset_properties": OrderedDict(
            all_sizes=[np.array([40, 56, 40])],
            all_classes=list(range(1, config.classes)),
            intensityproperties=properties,
            size_reductions=OrderedDict(case_0=np.float64(1.0)),
        ),
        "list_of_npz_files": ["/data/case_0.npz", "/data/case_1.npz"],
        "original_spacings": [np.array([1.0, 1.0, 1.0]), np.array([1.0, 0.5, 0.5])],
        "original_sizes": [np.array([40, 56, 40]), np.array([41, 57, 39])],
        "preprocessed_data_folder": "/data/preprocessed",
        "num_classes": config.classes - 1,
        "all_classes": list(range(1, config.classes)),
        "base_num_features": 32,
        "use_mask_for_norm": OrderedDict.fromkeys(range(channels), False),
        "keep_only_largest_region": None,
        "min_region_size_per_class": None,
        "min_size_per_class": None,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "data_identifier": "nnUNetData_plans_v2.1_trgSp_1x1x1",
        "plans_per_stage": {0: stage},
        "preprocessor_name": "PreprocessorFor2D" if dims == 2 else "GenericPreprocessor",
        "conv_per_stage": 2,
    } | changes


def write_nnunet_v1(
    folder: Path,
    config: MedNeXtConfig = SMALL,
    *,
    trainer: str = "nnUNetTrainerV2_MedNeXt_S_kernel3",
    fold: str = "fold_0",
    stage: int = 0,
    plans: dict[str, Any] | None = None,
    plans_inside: bool = True,
    files: tuple[str, ...] = ("model_final_checkpoint", "model_best"),
    prefix: str = "",
    legacy: bool = False,
) -> Path:
    """Write `folder/nnUNet/3d_fullres/Task017_Small/TRAINER__PLANS/fold_0`; returns the trainer's folder."""
    kind = "2d" if config.spatial_dims == 2 else "3d_fullres"
    root = folder / "nnUNet" / kind / "Task017_Small" / f"{trainer}__nnUNetPlansv2.1_trgSp_1x1x1"
    (root / fold).mkdir(parents=True)
    plans = v1_plans(config) if plans is None else plans
    (root / "plans.pkl").write_bytes(pickle.dumps(plans))
    (root / fold / "debug.json").write_text("{}")
    (root / fold / "training_log_2024_1_1.txt").write_text("epoch: 999\n")
    state = network(config).state_dict()
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))], lr=1e-3, eps=1e-4)
    for number, name in enumerate(files):
        content = {
            "epoch": 1000 - number,
            "state_dict": OrderedDict((prefix + key, value + number) for key, value in state.items()),
            "optimizer_state_dict": optimizer.state_dict(),
            "lr_scheduler_state_dict": None,
            "plot_stuff": (
                [np.float64(0.5), np.float64(0.25)],
                [np.float64(0.5)],
                [],
                [np.float64(0.875), np.float32(0.75)],
            ),
            "best_stuff": (None, np.float64(0.25), np.float64(0.5)),
            "amp_grad_scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7},
        }
        torch.save(content, root / fold / f"{name}.model", _use_new_zipfile_serialization=not legacy)
        info = OrderedDict(
            init=(
                f"/data/Task017_Small/{root.name}_plans_3D.pkl",
                0 if fold != "all" else "all",
                f"/results/nnUNet/{kind}/Task017_Small/{root.name}",
                "/data/preprocessed/Task017_Small",
                True,
                stage,
                True,
                False,
                True,
            ),
            name=trainer,
            plans=plans if plans_inside else None,
        )
        info["class"] = f"<class 'nnunet_mednext.training.network_training.{trainer}'>"
        (root / fold / f"{name}.model.pkl").write_bytes(pickle.dumps(info))
    return root


def v2_plans(config: MedNeXtConfig, **changes: Any) -> dict[str, Any]:
    """nnU-Net v2 plans with the configurations 2d, 3d_fullres and one that inherits (`changes` go into all)."""
    channels = config.in_channels
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    common = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "median_image_size_in_voxels": [36.0, 50.0, 35.0],
        "normalization_schemes": ["CTNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {"n_stages": 6},
            "_kw_requires_import": ["conv_op"],
        },
        "batch_dice": True,
    } | changes
    statistics = {
        "max": 900.0,
        "mean": 101.5,
        "median": 99.0,
        "min": -300.0,
        "percentile_00_5": -17.5,
        "percentile_99_5": 201.0,
        "std": 39.25,
    }
    return {
        "dataset_name": "Dataset017_Small",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [36, 50, 35],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "2d": common | {"patch_size": [16, 16], "spacing": [1.5, 2.0]},
            "3d_fullres": common | {"patch_size": [16, 16, 16], "spacing": [1.0, 1.5, 2.0]},
            "3d_fullres_bs8": {"inherits_from": "3d_fullres", "batch_size": 8},
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): statistics for c in range(channels)},
    }


def v2_dataset(config: MedNeXtConfig, **changes: Any) -> dict[str, Any]:
    """nnU-Net v2's dataset.json (`changes` replace entries)."""
    names = ["background", *(f"part_{i}" for i in range(1, config.classes))]
    return {
        "name": "Small",
        "channel_names": {str(c): "CT" for c in range(config.in_channels)},
        "labels": {name: value for value, name in enumerate(names)},
        "numTraining": 10,
        "file_ending": ".nii.gz",
    } | changes


def write_nnunet_v2(
    folder: Path,
    config: MedNeXtConfig = SMALL,
    *,
    trainer: str = "nnUNetTrainer_MedNeXt_S_kernel3",
    configuration: str | None = None,
    fold: str = "fold_0",
    plans: dict[str, Any] | None = None,
    dataset: dict[str, Any] | None = None,
    with_init_args: bool = True,
    mirror_axes: tuple[int, ...] | None = (0, 1, 2),
    files: tuple[str, ...] = ("checkpoint_final.pth", "checkpoint_best.pth"),
    prefix: str = "",
) -> Path:
    """Write `folder/Dataset017_Small/TRAINER__nnUNetPlans__CONFIGURATION/fold_0`; returns the trainer's folder."""
    configuration = configuration or ("2d" if config.spatial_dims == 2 else "3d_fullres")
    plans = v2_plans(config) if plans is None else plans
    dataset = v2_dataset(config) if dataset is None else dataset
    root = folder / "Dataset017_Small" / f"{trainer}__nnUNetPlans__{configuration}"
    (root / fold / "validation").mkdir(parents=True)
    (root / "plans.json").write_text(json.dumps(plans))
    (root / "dataset.json").write_text(json.dumps(dataset))
    (root / "dataset_fingerprint.json").write_text("{}")
    (root / fold / "debug.json").write_text("{}")
    state = network(config).state_dict()
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))], lr=1e-3)
    for number, name in enumerate(files):
        content: dict[str, Any] = {
            "network_weights": OrderedDict((prefix + key, value + number) for key, value in state.items()),
            "optimizer_state": optimizer.state_dict(),
            "grad_scaler_state": None,
            "logging": {
                "mean_fg_dice": [np.float64(0.5), np.float64(0.75)],
                "ema_fg_dice": [np.float64(0.5)],
                "dice_per_class_or_region": [[np.float64(0.5), np.float32(0.25)]],
                "train_losses": [np.float32(-0.5)],
                "val_losses": [np.float32(-0.25)],
                "lrs": [0.01, 0.009],
                "epoch_start_timestamps": [1.0, 2.0],
                "epoch_end_timestamps": [2.0, 3.0],
            },
            "_best_ema": np.float64(0.75),
            "current_epoch": 1000,
            "trainer_name": trainer,
        }
        if mirror_axes is not None:
            content["inference_allowed_mirroring_axes"] = tuple(a for a in mirror_axes if a < config.spatial_dims)
        if with_init_args:
            content["init_args"] = {
                "plans": plans,
                "configuration": configuration,
                "fold": 0,
                "dataset_json": dataset,
                "unpack_dataset": True,
                "device": torch.device("cuda", 0),
            }
        torch.save(content, root / fold / name)
    return root
