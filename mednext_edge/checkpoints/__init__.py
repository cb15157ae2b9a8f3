"""Checkpoints of every kind in, one `LoadedModel` out."""

from __future__ import annotations

from pathlib import Path

from mednext_edge.checkpoints.assemble import override
from mednext_edge.checkpoints.candidate import locate
from mednext_edge.checkpoints.demo import resolve
from mednext_edge.checkpoints.formats import FORMATS, Format, read
from mednext_edge.checkpoints.ours import save
from mednext_edge.models.loaded import LoadedModel

__all__ = ["FORMATS", "Format", "load", "save"]


def load(
    path: str | Path, *, patch: tuple[int, ...] | None = None, labels: dict[str, int] | None = None
) -> LoadedModel:
    """Read any checkpoint of a network that `models` has.

    Args:
        path: a weights file, a fold or trainer folder of nnU-Net v1 or v2, a folder of ours, or `demo:NAME`.
        patch: sliding-window patch to use instead of the checkpoint's, (z, y, x) voxels.
        labels: name to value, instead of the checkpoint's; `background` is 0.

    Returns:
        The network in eval mode with its task; `notes` say what the file left open.

    Raises:
        CheckpointError: unreadable, unsafe, incomplete, or of another network.
        IntegrityError: weights of ours whose digest does not match.
        UnknownNameError: no such demo model.
        UsageError: a patch or labels that do not fit the network.
    """
    return override(read(locate(resolve(path))), patch, labels)
