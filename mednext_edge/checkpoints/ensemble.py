"""The folds of a cross-validation as one model, which every other step takes like any other."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from mednext_edge.errors import CheckpointError
from mednext_edge.models.ensemble import Ensemble, describe_ensemble
from mednext_edge.models.families import build
from mednext_edge.models.loaded import LoadedModel, Source
from mednext_edge.task import ModelSpec

_FOLD = re.compile(r"fold_(\d+)")


def fold_folders(folder: str | Path) -> tuple[Path, ...]:
    """The `fold_0`, `fold_1`, ... in a folder, of nnU-Net or of `mednext-edge train --cross-validate`, in order.

    Raises:
        CheckpointError: there are none.
    """
    folder = Path(folder)
    found = {int(m[1]): f for f in folder.glob("fold_*") if f.is_dir() and (m := _FOLD.fullmatch(f.name))}
    if not found:
        raise CheckpointError(f"{folder} holds no fold_0, fold_1, ...; name a trainer folder, or each checkpoint")
    return tuple(found[number] for number in sorted(found))


def ensemble(models: Sequence[LoadedModel]) -> LoadedModel:
    """One model out of several trainings of the same network for the same task.

    Averaged is what the task averages over its windows: softmax, or logits for checkpoints of nnU-Net v2, as these do
    with their folds.

    Raises:
        CheckpointError: fewer than two, or models that differ in network, preprocessing, patch or labels.
    """
    if len(models) < 2:
        raise CheckpointError(f"found {len(models)} model; expected two or more to make an ensemble of")
    first = models[0]
    member = _plain(first.task.model)
    for other in models[1:]:
        for what, one, two in (
            ("network", member.config, _plain(other.task.model).config),
            ("family", member.family, other.task.model.family),
            ("preprocessing", first.task.preprocessing, other.task.preprocessing),
            ("sliding window", first.task.inference, other.task.inference),
            ("labels", first.task.labels, other.task.labels),
            ("regions", first.task.regions, other.task.regions),
        ):
            if one != two:
                raise CheckpointError(
                    f"{other.source.file} is not of the same training as {first.source.file}: its {what} is {two}, "
                    f"expected {one}"
                )
    net = Ensemble([_member(model, member) for model in models], member, first.task.inference.average).eval()
    digest = hashlib.sha256("".join(model.source.sha256 for model in models).encode()).hexdigest()
    return LoadedModel(
        net=net,
        task=first.task.model_copy(update={"model": describe_ensemble(net)}),
        source=Source(format="ensemble", file=", ".join(model.source.file for model in models), sha256=digest),
        notes=tuple(dict.fromkeys(note for model in models for note in model.notes)),
    )


def _plain(spec: ModelSpec) -> ModelSpec:
    """The same network without its deep-supervision heads, which only training needs."""
    if not spec.config.get("deep_supervision"):
        return spec
    config = {**spec.config, "deep_supervision": False}
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build(spec.model_copy(update={"config": config})).parameters())
    return spec.model_copy(update={"config": config, "parameters": parameters})


def _member(model: LoadedModel, spec: ModelSpec) -> nn.Module:
    if model.rewrites:
        raise CheckpointError(f"{model.source.file} was rewritten ({', '.join(model.rewrites)}); give it as trained")
    if model.quantization is not None:
        raise CheckpointError(f"{model.source.file} was trained in INT8; make the ensemble of the FP32 checkpoints")
    if model.task.model.config == spec.config:
        return copy.deepcopy(model.net).eval()
    net, given = build(spec), model.net.state_dict()
    net.load_state_dict({name: given[name] for name in net.state_dict()})
    return net.eval()
