"""A MedNeXt, or an ensemble of them, as a trainer folder of nnU-Net v2.

    plans.json  dataset.json  fold_0/checkpoint_final.pth  fold_1/...

Tensor names are the authors'. `architecture` names their class with its arguments: nnU-Net v2 ships no MedNeXt, so that
a trainer of one's own has to build it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mednext_edge.checkpoints.nnunet_v2 import ANISOTROPY
from mednext_edge.checkpoints.whole_folder import whole_folder
from mednext_edge.errors import UsageError
from mednext_edge.models.config import MedNeXtConfig
from mednext_edge.models.ensemble import Ensemble
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.regions import ORDER, write_regions
from mednext_edge.task import Normalization, Task

CONFIGURATION = {2: "2d", 3: "3d_fullres"}
AUTHORS_CLASS = "nnunet_mednext.network_architecture.mednextv1.MedNextV1.MedNeXt"
RESAMPLING = ("no_resampling_data_or_seg_to_shape", "resample_data_or_seg_to_shape")


def write_nnunet_v2(folder: Path, model: LoadedModel) -> tuple[str, ...]:
    """Write a new trainer folder, a fold a network.

    Returns:
        Notes on what nnU-Net v2 does otherwise than this model's own recipe.

    Raises:
        UsageError: the folder exists, or the network is no MedNeXt as it was trained.
    """
    nets = list(model.net.members) if isinstance(model.net, Ensemble) else [model.net]
    spec = model.net.member if isinstance(model.net, Ensemble) else model.task.model
    if spec.family != "mednext" or model.rewrites:
        raise UsageError(f"found a {spec.family}; expected MedNeXts in the form they were trained in")
    config = MedNeXtConfig(**spec.config)
    plans, dataset = _plans(model.task, config), _dataset(model.task)
    with whole_folder(folder) as temporary:
        for name, content in (("plans.json", plans), ("dataset.json", dataset)):
            (temporary / name).write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
        for fold, net in enumerate(nets):
            (temporary / f"fold_{fold}").mkdir()
            checkpoint = _checkpoint(net, model.task, config, plans, dataset, fold)
            torch.save(checkpoint, temporary / f"fold_{fold}" / "checkpoint_final.pth")
    return tuple(_notes(model.task))


def _checkpoint(
    net: nn.Module, task: Task, config: MedNeXtConfig, plans: dict[str, Any], dataset: dict[str, Any], fold: int
) -> dict[str, Any]:
    trainer = f"nnUNetTrainer_MedNeXt_{config.variant}_kernel{config.encoder_kernel}"
    return {
        "network_weights": {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()},
        "optimizer_state": None,
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": 0,
        "init_args": {
            "plans": plans,
            "configuration": CONFIGURATION[config.spatial_dims],
            "fold": fold,
            "dataset_json": dataset,
            "device": torch.device("cpu"),
        },
        "trainer_name": trainer if config.variant != "custom" else "nnUNetTrainer",
        "inference_allowed_mirroring_axes": task.inference.mirror_axes,
    }


def _dataset(task: Task) -> dict[str, Any]:
    channels = {str(i): _channel_name(n, i) for i, n in enumerate(task.preprocessing.normalization)}
    named: dict[str, Any] = {"labels": task.labels}
    if task.regions:
        labels, order = write_regions(task.labels, task.by_output)
        named = {"labels": labels, ORDER: order}
    return {"name": task.name, "channel_names": channels, **named, "file_ending": ".nii.gz"}


def _channel_name(normalization: Normalization, channel: int) -> str:
    """nnU-Net v2 chooses the normalisation by the channel's name."""
    return {"ct": "CT", "none": "noNorm", "rescale": "rescale_to_0_1"}.get(normalization.scheme, f"channel_{channel}")


SCHEMES: dict[str, Callable[[Normalization], str]] = {
    "zscore": lambda n: "ZScoreNormalization",
    # Without limits, zero mean and 255 is how RGB images come in.
    "ct": lambda n: "RGBTo01Normalization" if n.lower == float("-inf") else "CTNormalization",
    "none": lambda n: "NoNormalization",
    "rescale": lambda n: "RescaleTo01Normalization",
}


def _plans(task: Task, config: MedNeXtConfig) -> dict[str, Any]:
    recipe = task.preprocessing
    dims = config.spatial_dims
    resampled = recipe.spacing is not None
    separate = next((k for k, v in ANISOTROPY.items() if v == recipe.anisotropy_threshold), None)
    resampling = {"is_seg": False, "order": recipe.image_order, "order_z": 0, "force_separate_z": separate}
    function = RESAMPLING[resampled]
    transpose = list(recipe.transpose)
    return {
        "dataset_name": task.name,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "NibabelIO",
        "transpose_forward": transpose,
        "transpose_backward": [transpose.index(axis) for axis in range(len(transpose))],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(i): _intensities(n) for i, n in enumerate(recipe.normalization)
        },
        "configurations": {
            CONFIGURATION[dims]: {
                "data_identifier": f"nnUNetPlans_{CONFIGURATION[dims]}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(task.inference.patch),
                "spacing": list(recipe.spacing or (1.0,) * dims),
                "normalization_schemes": [SCHEMES[n.scheme](n) for n in recipe.normalization],
                "use_mask_for_norm": [n.masked for n in recipe.normalization],
                "resampling_fn_data": function,
                "resampling_fn_seg": function,
                "resampling_fn_probabilities": function,
                "resampling_fn_data_kwargs": resampling,
                "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": recipe.label_order},
                "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
                "batch_dice": dims == 2,
                "architecture": {
                    "network_class_name": AUTHORS_CLASS,
                    "arch_kwargs": _arguments(config),
                    "_kw_requires_import": [],
                },
            }
        },
    }


def _intensities(normalization: Normalization) -> dict[str, float]:
    limits = normalization.lower, normalization.upper
    low, high = (limit if abs(limit) != float("inf") else normalization.mean for limit in limits)
    return {"mean": normalization.mean, "std": normalization.sd, "percentile_00_5": low, "percentile_99_5": high}


def _arguments(config: MedNeXtConfig) -> dict[str, Any]:
    """Of the authors' class, which has no input and class counts here: nnU-Net v2 adds them."""
    return {
        "n_channels": config.channels,
        "exp_r": list(config.expansion),
        "kernel_size": None,
        "enc_kernel_size": config.encoder_kernel,
        "dec_kernel_size": config.decoder_kernel,
        "deep_supervision": config.deep_supervision,
        "do_res": config.residual,
        "do_res_up_down": config.residual_resample,
        "block_counts": list(config.blocks),
        "norm_type": config.norm,
        "dim": f"{config.spatial_dims}d",
        "grn": config.grn,
    }


def _notes(task: Task) -> list[str]:
    recipe = task.preprocessing
    notes = ["nnU-Net v2 ships no MedNeXt: its trainer has to build the network that `architecture` names"]
    if recipe.orientation is not None:
        notes.append(f"nnU-Net does not turn images: give it those stored along {recipe.orientation}")
    if recipe.normalize_after_resampling and recipe.spacing is not None:
        notes.append("nnU-Net v2 normalises before it resamples, this model after: intensities differ a little")
    if not recipe.crop_nonzero:
        notes.append("nnU-Net crops images to what is not zero, this model does not")
    if recipe.anisotropy_threshold not in ANISOTROPY.values():
        notes.append(
            f"nnU-Net resamples coarse axes apart from a ratio of 3, this model from {recipe.anisotropy_threshold:g}"
        )
    if task.inference.average == "softmax":
        notes.append("nnU-Net v2 averages logits over windows and folds, this model probabilities")
    if task.regions != task.by_output:
        notes.append("nnU-Net paints regions in the order of the outputs, this model in another: labels may differ")
    return notes
