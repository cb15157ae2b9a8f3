"""What a checkpoint is, for people and for `--json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mednext_edge.checkpoints.candidate import MODEL_JSON, locate
from mednext_edge.checkpoints.demo import resolve
from mednext_edge.checkpoints.dialects import DIALECTS
from mednext_edge.checkpoints.formats import FORMATS, read
from mednext_edge.checkpoints.ours import NAME, read_model_json
from mednext_edge.checkpoints.state import find_tensors
from mednext_edge.task import Frozen, Task


class Inspection(Frozen):
    """One checkpoint.

    Attributes:
        format, description: its entry in the table of formats.
        file, size_bytes, sha256: the weights file.
        task: network, preprocessing, sliding window, labels.
        notes: what the file did not say, and what was assumed or chosen.
        tensors, tensor_parameters: how many tensors the file holds for networks, and their elements.
        keys: whose tensor names the file has; None of a family that only our own files hold.
        dtypes: the types they are stored in, most frequent first.
        deep_supervision: whether there are heads at the lower levels.
        down_expansion: whose down-block rule the shapes follow: `mic`, `monai`, `both` or `custom`.
        provenance: of our own format only.
    """

    format: str
    description: str
    file: str
    size_bytes: int
    sha256: str
    task: Task
    notes: tuple[str, ...]
    tensors: int
    tensor_parameters: int
    keys: str | None
    dtypes: tuple[str, ...]
    deep_supervision: bool
    down_expansion: str | None
    provenance: dict[str, Any]


def describe(path: str | Path) -> Inspection:
    """Load a checkpoint and say what it is.

    Raises:
        CheckpointError, IntegrityError, UnknownNameError: as `load` does.
    """
    candidate = locate(resolve(path))
    model = read(candidate)
    entry = FORMATS[model.source.format]
    tensors = find_tensors(candidate.content)
    names = [str(t.dtype).removeprefix("torch.") for t in tensors.values()]
    config = getattr(model.net, "config", None)
    beside = candidate.file.parent / MODEL_JSON
    return Inspection(
        format=entry.name,
        description=entry.description,
        file=str(candidate.file),
        size_bytes=candidate.file.stat().st_size,
        sha256=model.source.sha256,
        task=model.task,
        notes=model.notes,
        tensors=len(tensors),
        tensor_parameters=sum(t.numel() for t in tensors.values()),
        keys=candidate.weights.layout if model.task.model.family in DIALECTS else None,
        dtypes=tuple(sorted(set(names), key=names.count, reverse=True)),
        deep_supervision=bool(getattr(config, "deep_supervision", False)),
        down_expansion=getattr(config, "layout", None),
        provenance=read_model_json(beside).provenance if entry.name == NAME else {},
    )
