"""Checkpoints of every kind in, one `LoadedModel` out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mednext_edge.checkpoints.candidate import locate
from mednext_edge.checkpoints.demo import resolve
from mednext_edge.checkpoints.formats import FORMATS, Format, read
from mednext_edge.checkpoints.ours import save
from mednext_edge.checkpoints.retask import retask
from mednext_edge.models.loaded import LoadedModel

__all__ = ["FORMATS", "Format", "load", "save"]


def load(
    path: str | Path,
    *,
    patch: tuple[int, ...] | None = None,
    labels: dict[str, int] | None = None,
    task: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Read any checkpoint of a network that `models` has.

    Args:
        path: a weights file, a fold or trainer folder of nnU-Net v1 or v2, a folder of ours, or `demo:NAME`.
        patch: sliding-window patch to use instead of the checkpoint's, (z, y, x) voxels.
        labels: name to value, instead of the checkpoint's; `background` is 0.
        task: any parts of a `Task`, as its JSON has them, instead of the checkpoint's: `preprocessing`, `inference`,
            `labels`, `regions`, `name`. For files that do not say how their network is used.

    Returns:
        The network in eval mode with its task; `notes` say what the file left open.

    Raises:
        CheckpointError: unreadable, unsafe, incomplete, or of another network.
        IntegrityError: weights of ours whose digest does not match.
        UnknownNameError: no such demo model.
        UsageError: a patch, labels or a task that do not fit the network.
    """
    changes = {**(task or {}), **({} if labels is None else {"labels": labels})}
    model = retask(read(locate(resolve(path))), changes)
    return model if patch is None else retask(model, {"inference": {"patch": tuple(patch)}})
