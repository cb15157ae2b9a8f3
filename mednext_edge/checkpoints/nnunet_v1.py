"""nnU-Net v1 (and nnunet_mednext): `.model` with `.model.pkl` beside it, plans inside or in `plans.pkl`.

The architecture is known to nnU-Net v1 only from the trainer's class name; here the tensors tell it and
the name is a cross-check.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mednext_edge.checkpoints.assemble import Recipe, assemble, validated
from mednext_edge.checkpoints.candidate import Candidate
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
from mednext_edge.checkpoints.unpickle import load_pickle
from mednext_edge.errors import CheckpointError
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.task import Inference, ModelSpec, Normalization, Preprocessing

NAME = "nnunet-v1"
PLANS = "plans.pkl"
STAGE_IN_INIT = 5
"""Place of `stage` among the arguments of nnU-Net v1's trainers."""


class Stage(Part):
    patch_size: tuple[Voxels, ...]
    current_spacing: tuple[Millimetres, ...]


class Properties(Part):
    intensityproperties: Indexed[Intensities] | None = None


class Plans(Part):
    """`num_classes` is without the background; `current_spacing` is along the transposed axes."""

    num_modalities: int
    num_classes: int
    all_classes: tuple[int, ...] = ()
    normalization_schemes: Indexed[str]
    use_mask_for_norm: Indexed[bool] | None = None
    dataset_properties: Properties = Properties()
    transpose_forward: tuple[int, ...] = (0, 1, 2)
    plans_per_stage: Indexed[Stage]
    preprocessor_name: str = "GenericPreprocessor"


PREPROCESSORS: dict[str, dict[str, Any]] = {
    "GenericPreprocessor": {},
    "PreprocessorFor2D": {},
    "GenericPreprocessor_linearResampling": {"image_order": 1},
    "PreprocessorFor3D_NoResampling": {"spacing": None},
}
"""What each of nnU-Net v1's preprocessors does differently from the first."""


def detect(candidate: Candidate) -> bool:
    """A `state_dict` in a file that has nnU-Net v1's pickles with it."""
    return (
        candidate.file.is_file()
        and isinstance(candidate.content, Mapping)
        and "state_dict" in candidate.content
        and bool(_companions(candidate.file))
    )


def read(candidate: Candidate) -> LoadedModel:
    """The network of a v1 fold with the preprocessing that its plans describe.

    Raises:
        CheckpointError: plans that are missing, incomplete, or for another network.
        UnsafePickleError: a pickle that asks for more than plain data.
    """
    trainer, init, plans = _plans(candidate.file)
    spec, _ = network_spec(candidate.weights)
    recipe = _recipe(candidate.file, trainer, init, plans, spec)
    return assemble(candidate, NAME, recipe)


def _companions(file: Path) -> list[Path]:
    beside = file.with_name(file.name + ".pkl")
    return [p for p in (beside, file.parent / PLANS, file.parent.parent / PLANS) if p.is_file()]


def _plans(file: Path) -> tuple[str, tuple[Any, ...], Plans]:
    """Trainer name, trainer arguments and plans, from the pickle beside the weights and from `plans.pkl`."""
    trainer, init, raw = "", (), None
    for companion in _companions(file):
        content = load_pickle(companion)
        if not isinstance(content, dict):
            raise CheckpointError(f"{companion} holds a {type(content).__name__}; expected nnU-Net v1's dictionary")
        if companion.name != PLANS:
            trainer = content["name"] if isinstance(content.get("name"), str) else ""
            init = tuple(content["init"]) if isinstance(content.get("init"), (tuple, list)) else ()
            content = content.get("plans")
        if isinstance(content, dict):
            raw = content
            break
    if raw is None:
        raise CheckpointError(
            f"{file}: no plans in {file.name}.pkl and no {PLANS} in the folder or the one above; copy it"
        )
    return trainer, init, validated(Plans, raw, companion, "these are not nnU-Net v1 plans")


def _recipe(file: Path, trainer: str, init: tuple[Any, ...], plans: Plans, spec: ModelSpec) -> Recipe:
    check_counts(plans.num_modalities, plans.num_classes + 1, spec.in_channels, spec.classes)
    number, notes = _stage(file, init, plans)
    stage = plans.plans_per_stage[number]
    dims = spec.spatial_dims
    check_spacing(stage.current_spacing[-dims:], dims)
    # 2-D plans carry three spacings; the one across the slices is never used.
    fields: dict[str, Any] = {
        "transpose": check_transpose(plans.transpose_forward),
        "normalization": tuple(_normalization(plans, c) for c in range(plans.num_modalities)),
        "normalize_after_resampling": True,
        "spacing": stage.current_spacing[-dims:],
    }
    if plans.preprocessor_name in PREPROCESSORS:
        fields |= PREPROCESSORS[plans.preprocessor_name]
    else:
        notes.append(f"preprocessor {plans.preprocessor_name} is not known; treated as GenericPreprocessor")
    mirrored = re.search("no_?mirror", trainer, re.IGNORECASE) is None
    classes = plans.all_classes if len(plans.all_classes) == plans.num_classes else range(1, spec.classes)
    return Recipe(
        name=_task_name(file, init),
        preprocessing=Preprocessing(**fields),
        inference=Inference(
            patch=stage.patch_size, mirror_axes=tuple(range(dims)) if mirrored else (), average="softmax"
        ),
        labels={"background": 0, **{f"class_{value}": i for i, value in enumerate(classes, 1)}},
        notes=(*notes, "nnU-Net v1 plans do not name the classes; they are numbered"),
        trainer=trainer,
    )


def _stage(file: Path, init: tuple[Any, ...], plans: Plans) -> tuple[int, list[str]]:
    stages = sorted(plans.plans_per_stage)
    if len(init) > STAGE_IN_INIT and isinstance(init[STAGE_IN_INIT], int):
        number = init[STAGE_IN_INIT]
        if number not in stages:
            raise CheckpointError(f"the weights are of stage {number}; the plans have the stages {stages}")
        return number, []
    if not stages:
        raise CheckpointError("the plans have no stages")
    number = stages[0] if "3d_lowres" in file.resolve().parts else stages[-1]
    return number, [f"the stage is not stated; took {number} of {stages}"]


def _normalization(plans: Plans, channel: int) -> Normalization:
    scheme = plans.normalization_schemes.get(channel)
    masked = bool((plans.use_mask_for_norm or {}).get(channel, False))
    if scheme is None:
        raise CheckpointError(f"the plans name no normalisation for channel {channel}")
    if scheme == "CT":
        return ct(channel, plans.dataset_properties.intensityproperties, masked)
    if scheme == "CT2":
        raise CheckpointError(
            f"channel {channel} is normalised as CT2 (clipped, then z-scored within the clipped range of each image), "
            "which is not supported; train with CT or nonCT"
        )
    # nnU-Net v1 z-scores under every other name, such as nonCT.
    return Normalization(scheme="none") if scheme == "noNorm" else Normalization(scheme="zscore", masked=masked)


def _task_name(file: Path, init: tuple[Any, ...]) -> str:
    """`TaskXXX_Name` from the folder the weights lie in now or were trained in."""
    texts = [str(file.resolve()), *(text for text in init if isinstance(text, str))]
    found = (re.search(r"Task\d+_[\w-]+", text) for text in texts)
    return next((match[0] for match in found if match), file.stem)
