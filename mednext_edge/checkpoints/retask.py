"""What the caller knows better than the file: patch, labels, regions, preprocessing, sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from mednext_edge.checkpoints.assemble import reasons, rounded
from mednext_edge.errors import UsageError
from mednext_edge.models.families import FAMILIES
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.registry import unknown_name
from mednext_edge.task import ModelSpec, Task


def retask(model: LoadedModel, changes: Mapping[str, Any]) -> LoadedModel:
    """The same network with parts of its task replaced.

    Args:
        changes: parts of a `Task` as its JSON has them. Of `preprocessing` and `inference` those that are given are
            replaced; the others as a whole. `model` may be there if it is the network's own. With regions, logits are
            averaged over windows unless `inference` says otherwise.

    Raises:
        UsageError: no such part, another network, a patch that it does not take, or parts that do not fit each other.
    """
    for name in changes:
        if name not in Task.model_fields:
            raise UsageError(str(unknown_name("part of a task", name, list(Task.model_fields))))
    task = model.task
    fields = task.model_dump()
    for name, given in changes.items():
        merged = name in ("preprocessing", "inference") and isinstance(given, Mapping)
        fields[name] = {**fields[name], **given} if merged else given
    averaged = isinstance(changes.get("inference"), Mapping) and "average" in changes["inference"]
    if changes.get("regions") and isinstance(fields["inference"], Mapping) and not averaged:
        fields["inference"] = {**fields["inference"], "average": "logits"}
    try:
        # As JSON, which knows no tuples.
        if ModelSpec.model_validate(fields["model"]).model_dump(mode="json") != task.model.model_dump(mode="json"):
            raise UsageError(f"{model.source.file} is another network than the task's `model`; leave that out")
        changed = Task.model_validate(fields | {"model": task.model})
    except ValidationError as error:
        raise UsageError(f"the task does not fit {model.source.file}: {reasons(error)}") from error
    if changed.inference.patch != task.inference.patch:
        _check_patch(changed)
    return replace(model, task=changed)


def _check_patch(task: Task) -> None:
    patch, divisor = task.inference.patch, FAMILIES[task.model.family].divisor(task.model)
    fitting, rounding = rounded(patch, divisor)
    if min(patch) < 1 or rounding:
        raise UsageError(
            f"found the patch {patch}; expected {task.model.spatial_dims} multiples of {divisor}"
            + (f", such as {fitting}" if rounding and min(patch) > 0 else "")
        )
