"""Renewing reports and gate of a bundle that is already in place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from mednext_edge.bundle.check import ENGINE_SUFFIXES, verify
from mednext_edge.bundle.manifest import MANIFEST, SEAL, Gate, Manifest, inside
from mednext_edge.bundle.swap import recover
from mednext_edge.bundle.writer import BundleWriter


def update_bundle(path: Path, files: Mapping[str, bytes], gate: Gate | None = None) -> Manifest:
    """Replace or add reports and pictures, and renew the gate, in one step.

    The bundle is checked first, so that a damaged file never gets a fresh digest. A complete new
    folder is then built beside it, with hard links to the files that stay (copies where the file
    system has no links), and swapped in. Guarantee: at every instant of a kill the path holds the
    old bundle or the new one, each with a manifest that fits its files; where the system has no
    atomic exchange, a kill between two renames leaves the old one beside the path, and the next
    write or update puts it back. Files are never written in place, so an engine that is open stays
    valid. Files that someone put beside them are carried over, and listed from then on.

    Args:
        path: the bundle.
        files: relative path to content; neither engines nor the manifest.
        gate: the new outcome of the accuracy gate; None keeps the old one.

    Returns:
        The manifest as written.

    Raises:
        UsageError: the path is no bundle.
        IntegrityError: the bundle is damaged.
        ExportError: the disk is full.
        ValueError: a path that is not inside the bundle or names an engine.
    """
    for name in files:
        if Path(inside(name)).suffix.lower() in ENGINE_SUFFIXES or name in (MANIFEST, SEAL):
            raise ValueError(f"{name}: engine and manifest are written by an export, not by an update")
    folder = Path(os.path.realpath(path))
    if folder.parent.is_dir():
        recover(folder)
    manifest = verify(folder)
    writer = BundleWriter(folder, force=True)
    with writer as new:
        for file in folder.rglob("*"):
            name = file.relative_to(folder).as_posix()
            if file.is_file() and name not in {*files, MANIFEST, SEAL}:
                _link(file, new / name)
        for name, content in files.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(content)
        return writer.commit(manifest if gate is None else manifest.model_copy(update={"gate": gate}))


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:  # no links on this file system, or too many
        shutil.copy2(source, target)
