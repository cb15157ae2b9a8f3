"""Renewing parts of a bundle that is already in place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
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

    def edit(folder: Path, manifest: Manifest) -> Manifest:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return manifest if gate is None else manifest.model_copy(update={"gate": gate})

    return edit_bundle(path, edit, replaced=files)


def edit_bundle(path: Path, edit: Callable[[Path, Manifest], Manifest], replaced: Iterable[str] = ()) -> Manifest:
    """Change anything in a bundle, with the guarantees of `update_bundle`.

    Args:
        path: the bundle.
        edit: given the new folder and the present manifest; adds files and returns the new manifest. Files that are
            already there are links to those of the bundle and must not be written to.
        replaced: relative paths of files to leave out of the new folder, for `edit` to write anew or not.

    Returns:
        The manifest as written.

    Raises:
        UsageError: the path is no bundle.
        IntegrityError: the bundle is damaged.
        ExportError: the disk is full.
    """
    folder = Path(os.path.realpath(path))
    if folder.parent.is_dir():
        recover(folder)
    manifest = verify(folder)
    left_out = {*replaced, MANIFEST, SEAL}
    writer = BundleWriter(folder, force=True)
    with writer as new:
        for file in folder.rglob("*"):
            name = file.relative_to(folder).as_posix()
            if file.is_file() and name not in left_out:
                _link(file, new / name)
        return writer.commit(edit(new, manifest))


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:  # no links on this file system, or too many
        shutil.copy2(source, target)
