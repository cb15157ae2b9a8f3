"""nnU-Net v2: `.pth` whose `init_args` hold plans and dataset, or with plans.json and dataset.json above it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, Field

from mednext_edge.checkpoints.assemble import Recipe, assemble, validated
from mednext_edge.checkpoints.candidate import Candidate, read_json
from mednext_edge.checkpoints.plans import (
    Indexed,
    Intensities,
    Millimetres,
    Part,
    Voxels,
    check_counts,
    check_spacing,
    check_transpose,
    ct,
)
from mednext_edge.checkpoints.state import network_spec
from mednext_edge.errors import CheckpointError
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.regions import has_regions, read_regions
from mednext_edge.registry import unknown_name
from mednext_edge.task import Inference, ModelSpec, Normalization, Preprocessing, Region

NAME = "nnunet-v2"
NEVER = 1e6
"""A ratio of spacings that no image reaches."""
ANISOTROPY: dict[bool | None, float] = {None: 3.0, False: NEVER, True: 1.0}
"""`force_separate_z` of the resampling, as the ratio from which the coarse axis is resampled apart."""
CASCADE = "this is the second stage of a cascade, which takes another network's labels as input; that is not supported"


class Resampling(Part):
    order: int = Field(default=3, ge=0, le=5)
    order_z: int = 0
    force_separate_z: bool | None = None


class Configuration(Part):
    """One entry of `configurations`, with what it inherits."""

    patch_size: tuple[Voxels, ...]
    spacing: tuple[Millimetres, ...]
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool | None, ...] = ()
    resampling_fn_data: str = "resample_data_or_seg_to_shape"
    resampling_fn_data_kwargs: Resampling = Resampling()
    resampling_fn_seg_kwargs: Resampling = Resampling(order=1)
    previous_stage: str | None = None


class Plans(Part):
    """`plans.json`; spacing and patch are along the transposed axes."""

    dataset_name: str = ""
    transpose_forward: tuple[int, ...] = (0, 1, 2)
    configurations: dict[str, dict[str, Any]]
    intensities: Indexed[Intensities] | None = Field(
        default=None,
        validation_alias=AliasChoices(
            "foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality"
        ),
    )


class Dataset(Part):
    """`dataset.json`."""

    labels: dict[str, int | Annotated[list[int], Field(min_length=1)]]
    regions_class_order: tuple[int, ...] | None = None
    channel_names: Indexed[str] = Field(validation_alias=AliasChoices("channel_names", "modality"))


def detect(candidate: Candidate) -> bool:
    """`network_weights` with the trainer's arguments, or with `plans.json` in the folder or the one above."""
    return (
        candidate.file.is_file()
        and isinstance(candidate.content, Mapping)
        and "network_weights" in candidate.content
        and ("init_args" in candidate.content or _above(candidate.file, "plans.json") is not None)
    )


def read(candidate: Candidate) -> LoadedModel:
    """The network of a v2 fold with the preprocessing that its plans describe.

    Raises:
        CheckpointError: plans that are missing, incomplete, or for another network; regions that say too little.
    """
    spec, _ = network_spec(candidate.weights)
    recipe = _recipe(candidate, spec)
    return assemble(candidate, NAME, recipe)


def _above(file: Path, name: str) -> Path | None:
    return next((f / name for f in (file.parent, file.parent.parent) if (f / name).is_file()), None)


def _part(candidate: Candidate, init: Mapping[str, Any], key: str, name: str) -> Mapping[str, Any]:
    """A dictionary from the trainer's arguments, which the weights were trained with, else from the folder."""
    if isinstance(init.get(key), Mapping):
        return dict(init[key])
    if found := _above(candidate.file, name):
        return read_json(found)
    raise CheckpointError(f"no {key} in the file, no {name} in its folder or the one above; copy it there")


def _recipe(candidate: Candidate, spec: ModelSpec) -> Recipe:
    content = candidate.content
    init = content.get("init_args") if isinstance(content.get("init_args"), Mapping) else {}
    file = candidate.file
    plans = validated(Plans, _part(candidate, init, "plans", "plans.json"), file, "its plans are not nnU-Net v2's")
    dataset = validated(
        Dataset, _part(candidate, init, "dataset_json", "dataset.json"), file, "its dataset.json is not nnU-Net v2's"
    )
    name = _configuration_name(file, init, plans)
    configuration = validated(Configuration, _inherited(plans, name), file, f"its configuration `{name}` is incomplete")
    if configuration.previous_stage:
        raise CheckpointError(CASCADE)
    labels, regions = _labels(dataset)
    channels = len(dataset.channel_names)
    check_counts(channels, len(regions) or len(labels), spec.in_channels, spec.classes)
    mirror_axes, notes = _mirror_axes(content, spec.spatial_dims)
    trainer = content.get("trainer_name")
    check_spacing(configuration.spacing, spec.spatial_dims)
    preprocessing, resampling_notes = _preprocessing(plans, configuration, channels)
    return Recipe(
        name=plans.dataset_name or file.stem,
        preprocessing=preprocessing,
        inference=Inference(patch=configuration.patch_size, mirror_axes=mirror_axes, average="logits"),
        labels=labels,
        regions=regions,
        notes=(f"configuration {name}", *notes, *resampling_notes),
        trainer=trainer if isinstance(trainer, str) else "",
    )


def _configuration_name(file: Path, init: Mapping[str, Any], plans: Plans) -> str:
    """From the trainer's arguments, or from the folder `Trainer__Plans__configuration`."""
    if isinstance(init.get("configuration"), str):
        return str(init["configuration"])
    for folder in file.resolve().parents[:2]:
        if len(parts := folder.name.split("__")) == 3:
            return parts[2]
    if len(plans.configurations) == 1:
        return next(iter(plans.configurations))
    raise CheckpointError(
        f"the file does not say which of the configurations {', '.join(plans.configurations)} it is of; "
        "put it in a folder named Trainer__Plans__configuration"
    )


def _inherited(plans: Plans, name: str) -> dict[str, Any]:
    """A configuration with everything that it takes over through `inherits_from`."""
    chain: list[str] = []
    merged: dict[str, Any] = {}
    following: Any = name
    while following is not None:
        if following in chain:
            raise CheckpointError(f"the configurations {' -> '.join([*chain, following])} inherit in a circle")
        if not isinstance(following, str) or following not in plans.configurations:
            error = unknown_name("configuration of these plans", str(following), plans.configurations)
            raise CheckpointError(str(error))
        chain.append(following)
        merged = plans.configurations[following] | merged
        following = plans.configurations[following].get("inherits_from")
    return merged


def _labels(dataset: Dataset) -> tuple[dict[str, int], tuple[Region, ...]]:
    given = {name: value for name, value in dataset.labels.items() if name != "ignore"}
    if has_regions(given):
        try:
            return read_regions(given, dataset.regions_class_order)
        except ValueError as error:
            raise CheckpointError(f"dataset.json: {error}") from error
    return {name: value[0] if isinstance(value, list) else value for name, value in given.items()}, ()


def _mirror_axes(content: Mapping[str, Any], dims: int) -> tuple[tuple[int, ...], list[str]]:
    key = "inference_allowed_mirroring_axes"
    if key not in content:
        return tuple(range(dims)), ["the file does not say which axes may be mirrored; took all"]
    axes = content[key] or ()
    if not isinstance(axes, (tuple, list)) or not all(isinstance(a, int) and 0 <= a < dims for a in axes):
        raise CheckpointError(f"found the mirror axes {axes}; expected some of {list(range(dims))}")
    return tuple(axes), []


def _preprocessing(plans: Plans, configuration: Configuration, channels: int) -> tuple[Preprocessing, list[str]]:
    schemes = configuration.normalization_schemes
    if len(schemes) != channels:
        raise CheckpointError(f"the plans normalise {len(schemes)} channels; the dataset has {channels}")
    masks = configuration.use_mask_for_norm or (False,) * channels
    if len(masks) != channels:
        raise CheckpointError(f"use_mask_for_norm has {len(masks)} entries; the dataset has {channels} channels")
    images, segmentations = configuration.resampling_fn_data_kwargs, configuration.resampling_fn_seg_kwargs
    resampled = not configuration.resampling_fn_data.startswith("no_resampling")
    notes = []
    if resampled and configuration.resampling_fn_data != "resample_data_or_seg_to_shape":
        notes.append(f"{configuration.resampling_fn_data} is done by splines of order {images.order}")
    if images.order_z != 0:
        notes.append(f"order {images.order_z} along a coarse axis is done with nearest neighbours")
    return Preprocessing(
        transpose=check_transpose(plans.transpose_forward),
        normalization=tuple(
            _normalization(scheme, bool(mask), c, plans)
            for c, (scheme, mask) in enumerate(zip(schemes, masks, strict=True))
        ),
        spacing=configuration.spacing if resampled else None,
        image_order=images.order,
        label_order=segmentations.order,
        anisotropy_threshold=ANISOTROPY[images.force_separate_z],
    ), notes


SCHEMES: dict[str, Callable[[Plans, int, bool], Normalization]] = {
    "ZScoreNormalization": lambda plans, channel, masked: Normalization(scheme="zscore", masked=masked),
    # v2 never masks CT.
    "CTNormalization": lambda plans, channel, masked: ct(channel, plans.intensities, masked=False),
    "NoNormalization": lambda plans, channel, masked: Normalization(scheme="none"),
    "RescaleTo01Normalization": lambda plans, channel, masked: Normalization(scheme="rescale"),
    # A division by 255 with nothing clipped.
    "RGBTo01Normalization": lambda plans, channel, masked: Normalization(scheme="ct", mean=0.0, sd=255.0),
}
"""nnU-Net v2's normalisation classes."""


def _normalization(scheme: str, masked: bool, channel: int, plans: Plans) -> Normalization:
    if scheme not in SCHEMES:
        raise CheckpointError(f"channel {channel} is normalised by {scheme}; known are {', '.join(SCHEMES)}")
    return SCHEMES[scheme](plans, channel, masked)
