"""What a command's first argument may be: a bundle or a checkpoint, as a session ready to run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mednext_edge.runtime.session import Session


def open_source(
    where: str, *, device: str | None = None, threads: int | None = None, patch: tuple[int, ...] | None = None
) -> Session:
    """The session of a bundle, its digests checked; or of a checkpoint, in PyTorch FP32.

    Raises:
        MednextEdgeError: neither can be opened.
    """
    import mednext_edge as mx
    from mednext_edge.bundle.manifest import MANIFEST

    model = Path(where) if (Path(where) / MANIFEST).is_file() else mx.load(where)
    return mx.open(model, device=device, threads=threads, patch=patch)


def source_digest(where: str) -> str:
    """SHA-256 in hex of what segments: a bundle's manifest, which holds the digests of its files, or the weights."""
    import hashlib

    import mednext_edge as mx
    from mednext_edge.bundle.manifest import MANIFEST

    manifest = Path(where) / MANIFEST
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else mx.load(where).source.sha256
