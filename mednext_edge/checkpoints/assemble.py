"""The last step that every reader shares: a network, a task that fits it, and the notes, as a LoadedModel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mednext_edge.checkpoints.candidate import Candidate
from mednext_edge.checkpoints.state import build_network, network_spec
from mednext_edge.errors import CheckpointError
from mednext_edge.models.families import FAMILIES
from mednext_edge.models.loaded import LoadedModel, Source
from mednext_edge.task import Inference, ModelSpec, Preprocessing, Region, Task


@dataclass(frozen=True)
class Recipe:
    """What a foreign checkpoint says of its use; `Task` without the network.

    Attributes:
        trainer: class name of the trainer, a cross-check of the variant and kernel only.
    """

    name: str
    preprocessing: Preprocessing
    inference: Inference
    labels: dict[str, int]
    regions: tuple[Region, ...] = ()
    notes: tuple[str, ...] = field(default=())
    trainer: str = ""


def assemble(candidate: Candidate, format_name: str, recipe: Recipe) -> LoadedModel:
    """Build the network that the tensors prove and join it with a recipe.

    Raises:
        CheckpointError: tensors that do not fit, or a recipe for other channels, classes or dimensions.
    """
    spec, assumed = network_spec(candidate.weights)
    net = build_network(spec, candidate.weights.tensors)
    patch, rounding = rounded(recipe.inference.patch, FAMILIES[spec.family].divisor(spec))
    task = make_task(candidate, recipe, spec, recipe.inference.model_copy(update={"patch": patch}))
    notes = (*candidate.notes, *candidate.weights.notes, *assumed, *recipe.notes, *rounding)
    notes += tuple(trainer_mismatch(recipe.trainer, spec))
    return LoadedModel(net, task, source(candidate, format_name), notes)


def make_task(candidate: Candidate, recipe: Recipe, spec: ModelSpec, inference: Inference) -> Task:
    """A validated Task.

    Raises:
        CheckpointError: plans and tensors disagree.
    """
    fields = {
        "name": re.sub(r"[^\w.+-]+", "_", recipe.name).strip("._") or "model",
        "model": spec,
        "preprocessing": recipe.preprocessing,
        "inference": inference,
        "labels": recipe.labels,
        "regions": recipe.regions,
    }
    return validated(Task, fields, candidate.file, "its plans do not fit its tensors")


Schema = TypeVar("Schema", bound=BaseModel)


def validated(schema: type[Schema], fields: Mapping[str, Any], path: Path, problem: str) -> Schema:
    """`fields` as a `schema`.

    Raises:
        CheckpointError: they are not; names the file, the problem and the first fields that are wrong.
    """
    try:
        return schema.model_validate(dict(fields))
    except ValidationError as error:
        raise CheckpointError(f"{path}: {problem}: {reasons(error)}") from error


def reasons(error: ValidationError) -> str:
    """The first fields that are wrong, and why."""
    found = [
        ": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, "))))
        for e in error.errors()
    ]
    return "; ".join(found[:3])


def source(candidate: Candidate, format_name: str) -> Source:
    return Source(format=format_name, file=candidate.file.name, sha256=candidate.sha256)


def rounded(patch: tuple[int, ...], divisor: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """A patch rounded up to what the network takes, with a note where that changed it."""
    fitting = tuple(-(-n // divisor) * divisor for n in patch)
    if fitting == patch:
        return patch, ()
    return fitting, (f"patch {patch} rounded up to {fitting}: the network takes multiples of {divisor}",)


def trainer_mismatch(trainer: str, spec: ModelSpec) -> list[str]:
    """What the trainer's name says against the tensors; nothing when they agree or it says nothing."""
    match = re.search(r"MedNe[Xx]t_?([SBML])(?:_kernel_?(\d+)|_k(\d+))?(?![a-z])", trainer)
    if not match:
        return []
    variant, kernel = match[1], match[2] or match[3]
    wrong = spec.variant != variant or (kernel is not None and int(kernel) != spec.kernel_size)
    found = f"{spec.variant} with kernel {spec.kernel_size}"
    return (
        [f"the trainer is named {trainer}, but the tensors are of variant {found}; the tensors decide"] if wrong else []
    )
