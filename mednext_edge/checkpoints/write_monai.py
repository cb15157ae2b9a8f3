"""A MedNeXt for MONAI: `model.pt` under MONAI's tensor names, and `network.json`, which builds MONAI's own class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from mednext_edge.checkpoints.keys import to_monai
from mednext_edge.checkpoints.whole_folder import whole_folder
from mednext_edge.errors import UsageError
from mednext_edge.models.config import MedNeXtConfig
from mednext_edge.models.loaded import LoadedModel

WEIGHTS, NETWORK = "model.pt", "network.json"


def write_monai(folder: Path, model: LoadedModel) -> tuple[str, ...]:
    """Write `model.pt` and `network.json` into a new folder.

    Returns:
        Notes on what the files do not say.

    Raises:
        UsageError: the folder exists, or MONAI's class cannot be such a network.
    """
    arguments = monai_arguments(model)
    with whole_folder(folder) as temporary:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.net.state_dict().items()}
        torch.save(to_monai(state), temporary / WEIGHTS)
        (temporary / NETWORK).write_text(json.dumps(arguments, indent=2) + "\n", encoding="utf-8")
    return ("the files say nothing of preprocessing, patch and labels; keep the original beside them",)


def monai_arguments(model: LoadedModel) -> dict[str, Any]:
    """The class and its arguments, as MONAI's ConfigParser reads them.

    Raises:
        UsageError: MONAI's class cannot be such a network; says why.
    """
    if model.task.model.family != "mednext" or model.rewrites:
        raise UsageError(f"MONAI has no {model.task.model.family} of this form; give one MedNeXt as it was trained")
    config = MedNeXtConfig(**model.task.model.config)
    levels = config.levels
    for reason, hinders in (
        (
            "its down blocks use the next level's expansion ratio, MONAI's the current one's (all but S differ)",
            config.down_expansion != config.expansion[:levels],
        ),
        ("encoder and decoder have kernels of different sizes", config.encoder_kernel != config.decoder_kernel),
        ("its residuals are on in some blocks only", config.residual != config.residual_resample),
        ("it has GRN in its down blocks", any(config.down_grn)),
        ("it has layer norms", config.norm != "group"),
    ):
        if hinders:
            raise UsageError(f"MONAI's MedNeXt cannot be this network: {reason}; write nnunet-v2 instead")
    return {
        "_target_": "monai.networks.nets.MedNeXt",
        "spatial_dims": config.spatial_dims,
        "init_filters": config.channels,
        "in_channels": config.in_channels,
        "out_channels": config.classes,
        "encoder_expansion_ratio": list(config.expansion[:levels]),
        "bottleneck_expansion_ratio": config.expansion[levels],
        "decoder_expansion_ratio": list(config.expansion[levels + 1 :]),
        "kernel_size": config.encoder_kernel,
        "deep_supervision": config.deep_supervision,
        "use_residual_connection": config.residual,
        "blocks_down": list(config.blocks[:levels]),
        "blocks_bottleneck": config.blocks[levels],
        "blocks_up": list(config.blocks[levels + 1 :]),
        "norm_type": config.norm,
        "global_resp_norm": config.grn,
    }
