"""What a set of weights is for, as data: the network, how images become its input, what its output means.

A `Task` travels unchanged from the checkpoint through every bundle to the device. All spatial tuples
are in array order, which is (z, y, x) of the NIfTI grid as nnU-Net reads it; 2-D tasks have (y, x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Size = TypeVar("Size", bound=int | None)


class Frozen(BaseModel):
    """Base of all schemas: immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSpec(Frozen):
    """Which network; `config` is the full configuration that the family's builder takes.

    Attributes:
        kind: `segmentation` answers with logits of every pixel or voxel, `classification` with those of the image.
        classes: output channels; a single one is the logit of class 1, that of class 0 being 0.
    """

    kind: Literal["segmentation", "classification"] = "segmentation"
    family: str
    variant: str
    kernel_size: int
    spatial_dims: Literal[2, 3]
    in_channels: int = Field(ge=1)
    classes: int = Field(ge=1)
    parameters: int = Field(ge=0)
    config: dict[str, Any]

    @property
    def labels(self) -> int:
        """How many classes are told apart: those of the output, or two with a single logit."""
        return max(2, self.classes)

    def output_shape(self, spatial: Sequence[Size]) -> tuple[int | Size, ...]:
        """Of the logits for one input of this spatial size, without the batch."""
        return (self.classes, *(spatial if self.kind == "segmentation" else ()))


class Normalization(Frozen):
    """How one channel's intensities become the network's input.

    `zscore`: (x - mean) / sd over the image, or over its non-zero mask with `masked`.
    `ct`: clip to [lower, upper], then (x - mean) / sd with the stored foreground statistics.
    `rescale`: linear to 0..1 over the image. `none`: as it is.
    """

    scheme: Literal["zscore", "ct", "rescale", "none"] = "zscore"
    masked: bool = False
    mean: float = 0.0
    sd: float = Field(default=1.0, gt=0)
    lower: float = float("-inf")
    upper: float = float("inf")

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


AXES = ("RL", "AP", "SI")


class Preprocessing(Frozen):
    """nnU-Net's recipe from file to network input, in this order.

    Attributes:
        colour: how the network takes photographs: three channels in this order, or one of luminance. Images of one
            channel are then repeated, those of three are weighted (ITU-R BT.601). None takes the channels as they are.
        orientation: axis codes of the file's (x, y, z) axes to turn the image to first, such as
            `RAS`; None keeps the stored axes, as nnU-Net does.
        transpose: permutation of the (z, y, x) axes.
        crop_nonzero: cut to the bounding box of the voxels that are non-zero in any channel.
        normalization: one entry a channel.
        normalize_after_resampling: nnU-Net v1 normalises the resampled image (True), v2 resamples the
            normalised one (False).
        spacing: target voxel size in mm, after `transpose`; None keeps the image's own.
        size: (y, x) that every image of a 2-D network is stretched to, whatever its shape; in place of `spacing`.
        image_order, label_order: spline orders of the resampling.
        anisotropy_threshold: ratio of largest to smallest spacing above which the coarse axis is
            resampled apart, with nearest neighbours (nnU-Net: 3).
    """

    colour: Literal["RGB", "BGR", "grey"] | None = None
    orientation: str | None = None
    transpose: tuple[int, ...] = (0, 1, 2)
    crop_nonzero: bool = True
    normalization: tuple[Normalization, ...] = (Normalization(),)
    normalize_after_resampling: bool = False
    spacing: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    image_order: int = Field(default=3, ge=0, le=5)
    label_order: int = Field(default=1, ge=0, le=5)
    anisotropy_threshold: float = Field(default=3.0, ge=1)

    @field_validator("orientation")
    @classmethod
    def _axis_codes(cls, codes: str | None) -> str | None:
        if codes is not None and (len(codes) != 3 or [sum(c in pair for c in codes) for pair in AXES] != [1, 1, 1]):
            raise ValueError(f"`{codes}` are no axis codes; expected one each of R or L, A or P, S or I, such as RAS")
        return codes

    @field_validator("transpose")
    @classmethod
    def _permutation(cls, transpose: tuple[int, ...]) -> tuple[int, ...]:
        if sorted(transpose) != [0, 1, 2]:
            raise ValueError(f"{transpose} is no permutation of the axes (0, 1, 2)")
        return transpose

    @field_validator("spacing")
    @classmethod
    def _positive(cls, spacing: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if spacing is not None and not (len(spacing) in (2, 3) and all(0 < s < float("inf") for s in spacing)):
            raise ValueError(f"{spacing} is no voxel size in mm")
        return spacing

    @model_validator(mode="after")
    def _one_size(self) -> Preprocessing:
        if self.size is not None and (self.spacing is not None or min(self.size) < 1):
            raise ValueError(
                f"found the size {self.size} and the spacing {self.spacing}; expected one of them, above 0"
            )
        channels = 1 if self.colour == "grey" else 3
        if self.colour is not None and len(self.normalization) != channels:
            raise ValueError(f"found {len(self.normalization)} normalisations for {self.colour}; expected {channels}")
        return self


class Inference(Frozen):
    """The sliding window: patch, step as a fraction of the patch, mirror axes, what is averaged.

    `average="softmax"` is nnU-Net v1, `"logits"` is v2. `mirror_axes` are spatial axes, 0-based;
    they are used only when test-time augmentation is asked for.
    """

    patch: tuple[int, ...]
    step: float = Field(default=0.5, gt=0, le=1)
    mirror_axes: tuple[int, ...] = ()
    average: Literal["softmax", "logits"] = "softmax"


class Region(Frozen):
    """A union of labels that one output channel finds by itself, such as a whole tumour.

    Attributes:
        name: also that of the label which the region leaves in a label map.
        values: of all labels inside it.
        output: the channel that finds it; None is its place among the regions.
    """

    name: str
    values: tuple[int, ...] = Field(min_length=1)
    output: int | None = Field(default=None, ge=0)


@dataclass(frozen=True)
class Paint:
    """What one region leaves in a label map: `value` where the logit of channel `output` is above 0."""

    output: int
    value: int


class Task(Frozen):
    """A network with everything needed to use it on an image.

    Attributes:
        labels: name to value, without gaps from 0; in a segmentation 0 is the background.
        regions: what the output channels find, a sigmoid each, in place of classes that exclude each other (nnU-Net's
            region-based training). A region is where its logit is above 0; in a label map every region in turn
            overwrites the ones before it with its own label. Empty for classes.
    """

    name: str
    model: ModelSpec
    preprocessing: Preprocessing
    inference: Inference
    labels: dict[str, int]
    regions: tuple[Region, ...] = ()

    @property
    def paints(self) -> tuple[Paint, ...]:
        """How a label map comes about, one region over the other; empty for classes."""
        places = enumerate(self.regions)
        return tuple(Paint(n if r.output is None else r.output, self.labels[r.name]) for n, r in places)

    @property
    def by_output(self) -> tuple[Region, ...]:
        """The regions in the order of the output channels; empty for classes."""
        outputs = [paint.output for paint in self.paints]
        return tuple(self.regions[outputs.index(n)] for n in range(len(outputs)))

    @property
    def values_by_output(self) -> tuple[tuple[int, ...], ...]:
        """The values inside each region, in the order of the output channels; empty for classes."""
        return tuple(region.values for region in self.by_output)

    @property
    def masks(self) -> dict[str, tuple[int, ...]]:
        """What is scored and stored under each name but the background's: the values that belong to it."""
        if self.regions:
            return {region.name: region.values for region in self.regions}
        return {name: (value,) for name, value in self.labels.items() if value != 0}

    @property
    def score_channels(self) -> int:
        """Channels that decide on a voxel: one a region, or one a class."""
        return len(self.regions) or self.model.labels

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        dims = self.model.spatial_dims
        if len(self.inference.patch) != dims:
            raise ValueError(f"patch {self.inference.patch} does not have {dims} axes")
        if len(self.preprocessing.normalization) != self.model.in_channels:
            raise ValueError(
                f"{len(self.preprocessing.normalization)} normalisations for {self.model.in_channels} channels"
            )
        if self.preprocessing.size is not None and dims != 2:
            raise ValueError(f"the size {self.preprocessing.size} is for 2-D networks, this one is {dims}-D")
        count = len(self.regions) + 1 if self.regions else self.model.labels
        if sorted(self.labels.values()) != list(range(count)):
            raise ValueError(f"labels {self.labels} do not number {count} classes from 0")
        if self.regions:
            self._check_regions()
        return self

    def _check_regions(self) -> None:
        if self.model.kind != "segmentation" or self.inference.average != "logits":
            raise ValueError("regions are for segmentations that average logits over windows")
        if len(self.regions) != self.model.classes:
            raise ValueError(f"{len(self.regions)} regions for {self.model.classes} output channels")
        foreground = {name: value for name, value in self.labels.items() if value != 0}
        if sorted(region.name for region in self.regions) != sorted(foreground):
            raise ValueError(f"the regions {[r.name for r in self.regions]} are not the labels {sorted(foreground)}")
        if sorted(paint.output for paint in self.paints) != list(range(len(self.regions))):
            raise ValueError(f"the regions' outputs {[p.output for p in self.paints]} are not each channel once")
        for region in self.regions:
            if foreground[region.name] not in region.values or not set(region.values) <= set(foreground.values()):
                raise ValueError(
                    f"the region {region.name} of the values {region.values} leaves the label "
                    f"{foreground[region.name]}; expected values of {sorted(foreground.values())}, its own among them"
                )
