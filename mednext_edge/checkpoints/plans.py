"""What the plans of nnU-Net v1 and v2 have in common: bounded numbers, statistics per channel, class names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from mednext_edge.errors import CheckpointError
from mednext_edge.task import Normalization

SMALLEST_SD = 1e-8
"""nnU-Net's guard against division by zero."""


class Part(BaseModel):
    """Base of the parts of a foreign file: takes what is needed, leaves the rest."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Intensities(Part):
    """Statistics of one channel's foreground voxels over the training set."""

    mean: float = Field(allow_inf_nan=False)
    sd: float = Field(validation_alias=AliasChoices("sd", "std"), ge=0, allow_inf_nan=False)
    percentile_00_5: float = Field(allow_inf_nan=False)
    percentile_99_5: float = Field(allow_inf_nan=False)


def _indexed(value: Any) -> Any:
    return dict(enumerate(value)) if isinstance(value, (list, tuple)) else value


T = TypeVar("T")
Indexed = Annotated[dict[int, T], BeforeValidator(_indexed)]
"""A mapping from channel or stage number, which some versions write as a list."""
Voxels = Annotated[int, Field(ge=1, le=4096)]
Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def ct(channel: int, statistics: Mapping[int, Intensities] | None, masked: bool) -> Normalization:
    """Clip to the 0.5 and 99.5 percentiles and z-score, with the training set's foreground statistics.

    Raises:
        CheckpointError: the plans have no statistics for this channel.
    """
    if statistics is None or channel not in statistics:
        raise CheckpointError(
            f"channel {channel} is normalised as CT, but the plans hold no intensity statistics for it"
        )
    entry = statistics[channel]
    return Normalization(
        scheme="ct",
        masked=masked,
        mean=entry.mean,
        sd=max(entry.sd, SMALLEST_SD),
        lower=entry.percentile_00_5,
        upper=entry.percentile_99_5,
    )


def check_transpose(transpose: tuple[int, ...]) -> tuple[int, ...]:
    """A permutation of the three axes.

    Raises:
        CheckpointError: it is none.
    """
    if sorted(transpose) != [0, 1, 2]:
        raise CheckpointError(f"found transpose_forward {transpose}; expected a permutation of 0, 1, 2")
    return transpose


def check_counts(channels: int, classes: int, found_channels: int, found_classes: int) -> None:
    """The plans' numbers against the tensors'; `classes` are output channels, regions included.

    Raises:
        CheckpointError: they differ.
    """
    if (channels, classes) != (found_channels, found_classes):
        raise CheckpointError(
            f"the plans are for {channels} input channels and {classes} classes, the tensors for {found_channels} and "
            f"{found_classes}. Cascades (a previous stage as input) and regions that the plans do not name are not "
            "supported; otherwise plans and weights are of different trainings"
        )


def check_spacing(spacing: tuple[float, ...], dims: int) -> None:
    """One spacing an axis of the network.

    Raises:
        CheckpointError: more or fewer.
    """
    if len(spacing) != dims:
        raise CheckpointError(
            f"the plans have the spacing {spacing}; expected {dims} values, as the network is {dims}-D"
        )
