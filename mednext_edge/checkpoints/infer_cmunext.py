"""The configuration of a CMUNeXt from nothing but the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from mednext_edge.checkpoints.shapes import Shapes
from mednext_edge.errors import CheckpointError, UsageError
from mednext_edge.models.cmunext import LEVELS, CMUNeXtConfig

ENCODERS = tuple(f"encoder{i + 1}" for i in range(LEVELS))


def is_cmunext(names: Iterable[str]) -> bool:
    """Whether these are its tensor names; other U-Nets of its authors share the decoder's, not the units'."""
    names = set(names)
    return {"stem.conv.0.weight", "Conv_1x1.weight", "encoder1.block.0.0.fn.0.weight"} <= names


def infer_cmunext(state: Mapping[str, Tensor]) -> CMUNeXtConfig:
    """Widths, depths, kernels, channels and classes of a state_dict; all of them leave a trace.

    Raises:
        CheckpointError: a tensor that is missing, or whose shape no CMUNeXt has.
    """
    shapes = Shapes(state)
    try:
        return CMUNeXtConfig(
            in_channels=shapes.shape("stem.conv.0.weight", axes=4)[1],
            classes=shapes.shape("Conv_1x1.weight", axes=4)[0],
            widths=tuple(shapes.shape(f"{name}.up.conv.0.weight", axes=4)[0] for name in ENCODERS),
            depths=tuple(shapes.count(rf"{name}\.block\.(\d+)\.", f"units of {name}") for name in ENCODERS),
            kernels=tuple(shapes.shape(f"{name}.block.0.0.fn.0.weight", axes=4)[2] for name in ENCODERS),
        )
    except UsageError as error:
        raise CheckpointError(f"the tensors do not make a CMUNeXt: {error}") from error
