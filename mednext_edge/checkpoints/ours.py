"""Our own format: `weights.safetensors` with `model.json` (task, digest, provenance) beside it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field
from safetensors.torch import save_file

from mednext_edge.checkpoints.assemble import source, validated
from mednext_edge.checkpoints.candidate import MODEL_JSON, Candidate, is_safetensors, read_json
from mednext_edge.checkpoints.state import build_network, check_tensors
from mednext_edge.errors import CheckpointError, IntegrityError, UsageError
from mednext_edge.models.families import FAMILIES
from mednext_edge.models.loaded import LoadedModel, Quantization
from mednext_edge.task import Frozen, Task

NAME = "mednext-edge"
WEIGHTS = "weights.safetensors"
DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class WeightsFile(Frozen):
    """The file beside `model.json`, its digest and the type its parameters are stored in."""

    file: str
    sha256: str = Field(pattern="[0-9a-f]{64}")
    dtype: str


class ModelFile(Task):
    """`model.json`: a task, its weights, and how they came to be."""

    weights: WeightsFile
    quantization: Quantization | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)


def detect(candidate: Candidate) -> bool:
    """A safetensors file with a `model.json` beside it."""
    beside = candidate.file.parent / MODEL_JSON
    return beside.is_file() and (not candidate.file.is_file() or is_safetensors(candidate.file))


def read(candidate: Candidate) -> LoadedModel:
    """The network that `model.json` describes, with the weights whose digest it states.

    Raises:
        CheckpointError: `model.json` is not ours, or the weights do not fit it.
        IntegrityError: the weights are not those that `model.json` was written for.
    """
    described = read_model_json(candidate.file.parent / MODEL_JSON)
    if described.weights.file != candidate.file.name:
        raise CheckpointError(
            f"{candidate.file.parent / MODEL_JSON} describes {described.weights.file}, not {candidate.file.name}; "
            "move the file to a folder of its own to read it as bare weights"
        )
    if not candidate.file.is_file():
        raise CheckpointError(f"{candidate.file}, which {MODEL_JSON} names, is missing; copy both files")
    if candidate.sha256 != described.weights.sha256:
        raise IntegrityError(
            f"{candidate.file} has the digest {candidate.sha256}; {MODEL_JSON} states {described.weights.sha256}. "
            "One of the two was changed or damaged: copy both again"
        )
    check_tensors(candidate.content)
    net = build_network(described.model, candidate.content)
    spec = FAMILIES[described.model.family].describe(net)
    for field in ("spatial_dims", "in_channels", "classes", "parameters"):
        if (said := getattr(described.model, field)) != (found := getattr(spec, field)):
            raise CheckpointError(
                f"{candidate.file.parent / MODEL_JSON} says {field} = {said}, its tensors have {found}; "
                "the file was edited by hand: restore it"
            )
    task = Task(**{name: getattr(described, name) for name in Task.model_fields} | {"model": spec})
    quantization = described.quantization
    known = {name for name, _ in net.named_modules()}
    if quantization is not None and (unknown := sorted(set(quantization.thresholds) - known)):
        raise CheckpointError(
            f"{candidate.file.parent / MODEL_JSON} has INT8 thresholds of layers that this network lacks "
            f"({', '.join(unknown[:3])}); the file was edited by hand: restore it"
        )
    return LoadedModel(net, task, source(candidate, NAME), candidate.notes, quantization=quantization)


def read_model_json(path: Path) -> ModelFile:
    """`model.json`, checked.

    Raises:
        CheckpointError: it is not a model description of ours.
    """
    return validated(ModelFile, read_json(path), path, "it is no model description of this package")


def save(
    folder: Path,
    model: LoadedModel,
    *,
    dtype: torch.dtype | None = None,
    provenance: Mapping[str, Any] | BaseModel | None = None,
) -> None:
    """Write `weights.safetensors` and `model.json` into `folder`, which may hold other files.

    Both are complete before either appears. A new folder appears whole; in an old one the weights are
    replaced first, so that a stop in between is seen as a digest that does not match.

    Args:
        folder: made if missing.
        model: in training form.
        dtype: of the stored weights. None takes float16, and float32 for weights that were trained in INT8, which
            float16 would move across the edges between its levels.
        provenance: how the weights came to be.

    Raises:
        UsageError: a rewritten network, or a type other than float32, float16, bfloat16.
        CheckpointError: a weight that `dtype` cannot hold.
    """
    folder = Path(folder)
    if model.rewrites:
        raise UsageError(
            f"a model with the rewrites {model.rewrites} has no training form to save; save it before fusing"
        )
    dtype = dtype or (torch.float16 if model.quantization is None else torch.float32)
    if dtype not in DTYPES:
        raise UsageError(f"found {dtype}; expected one of {', '.join(DTYPES.values())}")
    # Running statistics stay as they are: variances may be smaller than float16 can hold, and are few.
    statistics = {name for name, _ in model.net.named_buffers()}
    tensors = {
        name: (t if name in statistics else t.to(dtype)).detach().cpu().contiguous()
        for name, t in model.net.state_dict().items()
    }
    try:
        check_tensors(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"cannot be stored as {DTYPES[dtype]}: {error}; or store it as float32") from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / WEIGHTS).chmod(0o666 & ~_umask())  # safetensors keeps its files to their owner
        with (temporary / WEIGHTS).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        described = ModelFile(
            **{name: getattr(model.task, name) for name in Task.model_fields},
            weights=WeightsFile(file=WEIGHTS, sha256=digest, dtype=DTYPES[dtype]),
            quantization=model.quantization,
            provenance=provenance.model_dump(mode="json")
            if isinstance(provenance, BaseModel)
            else dict(provenance or {}),
        )
        (temporary / MODEL_JSON).write_text(described.model_dump_json(indent=2) + "\n", encoding="utf-8")
        temporary.chmod(0o777 & ~_umask())
        if not folder.exists():
            temporary.rename(folder)
            return
        for name in (WEIGHTS, MODEL_JSON):
            (temporary / name).replace(folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    """The process's mask for new files; the system only tells it while setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
