"""The configuration of a MedNeXt from nothing but the names and shapes of its tensors.

Every number is read off a tensor that is really there, so a file cannot ask for more than it holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from mednext_edge.checkpoints.shapes import Shapes
from mednext_edge.errors import CheckpointError, UsageError
from mednext_edge.models.config import MedNeXtConfig

NORM_NOTE = "norm type: group and layer norm have the same tensors; assumed group (one group a channel)"


def infer_config(state: Mapping[str, Tensor], layout: str) -> tuple[MedNeXtConfig, tuple[str, ...]]:
    """Variant, kernels, channels, classes, levels, GRN and heads of a state_dict.

    Args:
        state: under the authors' names.
        layout: whose names the file used: `mic` or `monai`.

    Returns:
        The configuration, and notes on what leaves no trace in the tensors and had to be assumed.

    Raises:
        CheckpointError: a tensor whose shape no MedNeXt has.
    """
    reader = Shapes(state)
    stem = reader.shape("stem.weight")
    if len(stem) not in (4, 5):
        raise CheckpointError(f"stem.weight has shape {stem}; expected 4 axes for a 2-D or 5 for a 3-D network")
    levels = reader.count(r"down_(\d+)\.", "down blocks")
    stages = [f"enc_block_{i}" for i in range(levels)] + ["bottleneck"]
    stages += [f"dec_block_{i}" for i in reversed(range(levels))]
    blocks = tuple(reader.count(rf"{stage}\.(\d+)\.", f"blocks of {stage}") for stage in stages)
    widths = [stem[0] << min(i, 2 * levels - i) for i in range(len(stages))]
    residual_resample = any(re.match(r"(down|up)_\d+\.res_conv\.", name) for name in state)
    # MONAI has one switch for both kinds of residual; the authors have two, and theirs leaves no trace.
    residual = residual_resample if layout == "monai" else True
    try:
        config = MedNeXtConfig(
            in_channels=stem[1],
            classes=reader.first(["out_0.conv_out.weight"], axis=1, bias="out_0.conv_out.bias"),
            spatial_dims=len(stem) - 2,
            channels=stem[0],
            expansion=tuple(
                reader.ratio([f"{stage}.{j}" for j in range(n)], width)
                for stage, n, width in zip(stages, blocks, widths, strict=True)
            ),
            down_expansion=tuple(reader.ratio([f"down_{i}"], stem[0] << i) for i in range(levels)),
            blocks=blocks,
            encoder_kernel=reader.kernel(stages[:levels], [f"down_{i}" for i in range(levels)]),
            decoder_kernel=reader.kernel(stages[levels:], [f"up_{i}" for i in range(levels)]),
            residual=residual,
            residual_resample=residual_resample,
            grn="bottleneck.0.grn_gamma" in state,
            down_grn=tuple(f"down_{i}.grn_gamma" in state for i in range(levels)),
            deep_supervision=any(re.match(r"out_[1-9]\d*\.", name) for name in state),
        )
    except UsageError as error:
        raise CheckpointError(f"the tensors do not make a MedNeXt: {error}") from error
    notes = [NORM_NOTE]
    if layout == "mic":
        notes.append("residual connections of ordinary blocks leave no trace in the tensors; assumed on")
    return config, tuple(notes)


OTHERS = (
    ("decoder.transpconvs.", "an nnU-Net v2 U-Net (PlainConvUNet or ResidualEncoderUNet)"),
    ("conv_blocks_context.", "an nnU-Net v1 U-Net (Generic_UNet)"),
    ("swinViT.", "a SwinUNETR"),
    ("vit.", "a UNETR"),
    ("Up_conv5.", "a U-Net of the kind of CMUNeXt, but another one"),
    ("skip_layers.", "a MONAI DynUNet"),
    ("model.0.conv.", "a MONAI U-Net"),
)
"""How the tensors of well-known networks begin that are not read."""
