"""The configuration of a MedNeXt from nothing but the names and shapes of its tensors.

Every number is read off a tensor that is really there, so a file cannot ask for more than it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from mednext_edge.checkpoints.keys import from_monai, layout_of
from mednext_edge.errors import CheckpointError, UsageError
from mednext_edge.models.config import MedNeXtConfig

NORM_NOTE = "norm type: group and layer norm have the same tensors; assumed group (one group a channel)"


def infer_config(state: Mapping[str, Tensor]) -> tuple[MedNeXtConfig, tuple[str, ...]]:
    """Variant, kernels, channels, classes, levels, GRN and heads of a state_dict, under either naming.

    Returns:
        The configuration, and notes on what leaves no trace in the tensors and had to be assumed.

    Raises:
        CheckpointError: not a MedNeXt, or a tensor whose shape no MedNeXt has.
    """
    layout = layout_of(state)
    if layout is None:
        raise CheckpointError(not_a_mednext(state))
    if layout == "monai":
        state = from_monai(state)
    reader = _Shapes(state)
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


class _Shapes:
    """Look-ups in a state_dict that name the tensor when it is not there or not possible."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.state:
            raise CheckpointError(f"the tensor `{name}` is missing; found {len(self.state)} others")
        return tuple(self.state[name].shape)

    def count(self, pattern: str, what: str) -> int:
        """How many numbered parts there are; they must run from 0 without gaps."""
        found = sorted({int(m[1]) for name in self.state if (m := re.match(pattern, name))})
        if not found or found != list(range(len(found))):
            raise CheckpointError(f"found {what} numbered {found[:8]}; expected 0, 1, 2, ... without gaps")
        return len(found)

    def first(self, names: Iterable[str], axis: int, bias: str) -> int:
        """The length of an axis of the first tensor that is there, or of the bias."""
        names = list(names)
        for name in names:
            if name in self.state and self.state[name].dim() > axis:
                return int(self.state[name].shape[axis])
        if bias in self.state and self.state[bias].dim() == 1:
            return int(self.state[bias].shape[0])
        raise CheckpointError(f"the tensors `{names[0]}` and `{bias}` are missing or have no axis {axis}")

    def ratio(self, parts: list[str], width: int) -> int:
        """Hidden width over width, from whichever block still has its expansion convolution."""
        hidden = self.first((f"{p}.conv2.weight" for p in parts), axis=0, bias=f"{parts[0]}.conv2.bias")
        if hidden % width or not hidden:
            raise CheckpointError(
                f"{parts[0]}.conv2.weight makes {hidden} channels out of {width}; expected a whole multiple"
            )
        return hidden // width

    def kernel(self, stages: Iterable[str], resamplers: Iterable[str]) -> int:
        names = [f"{stage}.0.conv1.weight" for stage in stages] + [f"{name}.conv1.weight" for name in resamplers]
        return self.first(names, axis=2, bias="")


_OTHERS = (
    ("decoder.transpconvs.", "an nnU-Net v2 U-Net (PlainConvUNet or ResidualEncoderUNet)"),
    ("conv_blocks_context.", "an nnU-Net v1 U-Net (Generic_UNet)"),
    ("swinViT.", "a SwinUNETR"),
    ("vit.", "a UNETR"),
    ("Up_conv5.", "a CMUNeXt or another U-Net of its kind"),
    ("skip_layers.", "a MONAI DynUNet"),
    ("model.0.conv.", "a MONAI U-Net"),
)


def not_a_mednext(state: Mapping[str, Tensor]) -> str:
    """What to say of tensors that are another network's."""
    names = list(state)
    guess = next((what for prefix, what in _OTHERS if any(n.startswith(prefix) for n in names)), None)
    return (
        f"this does not look like a MedNeXt{f' but like {guess}' if guess else ''}: found {len(names)} tensors "
        f"such as {', '.join(f'`{n}`' for n in names[:4])}; expected `stem.weight`, `enc_block_0.0.conv1.weight`, ... "
        "(or MONAI's `enc_stages.0.0.conv1.weight`)"
    )
