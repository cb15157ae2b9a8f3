"""Writing a bundle: into a hidden sibling folder, then renamed whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import TracebackType

from mednext_edge.bundle.manifest import MANIFEST, SEAL, FileEntry, Manifest, digest, inside, seal
from mednext_edge.bundle.swap import recover, replace, sibling, sync
from mednext_edge.errors import ExportError, UsageError

_FULL = {errno.ENOSPC, errno.EDQUOT}
# What C++ libraries say who cannot write; OpenVINO drops the system's reason. In a folder that was
# just made by this process, nothing but missing space is left as one.
_FULL_WORDS = ("No space left on device", "iostream error")


class BundleWriter:
    """A temporary folder that becomes the bundle, all of it at once or not at all.

        writer = BundleWriter(out, force=False)
        with writer as folder:
            ...  # write engine, reports and pictures into `folder`
            writer.commit(manifest)

    Leaving the block without `commit` discards the folder. Until `commit` renames it, `out` is
    untouched: an exception removes the temporary folder, a kill leaves it under a name that holds
    the process id, and the next write removes it once that process is gone.

    Args:
        out: the bundle's folder; its parents are made.
        force: replace a bundle that is already there. Anything else that is not empty is never replaced.

    Raises:
        UsageError: on entry, when `out` is taken or its place cannot be written.
        ExportError: on exit, when the disk was full.
    """

    def __init__(self, out: Path, force: bool = False) -> None:
        # A link is followed, so that the rename replaces the folder and not the link.
        self.out = Path(os.path.realpath(out))
        self.force = force
        self._temporary: Path | None = None

    def __enter__(self) -> Path:
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            recover(self.out)
            refuse_taken(self.out, self.force)
            temporary = sibling(self.out, "tmp")
            temporary.mkdir()
        except OSError as error:
            if error.errno in _FULL:
                raise _disk_full(self.out.parent, 0) from error
            raise UsageError(f"{self.out} cannot be written: {error.strerror}; choose another --out") from error
        self._temporary = temporary
        return temporary

    def commit(self, manifest: Manifest) -> Manifest:
        """Write the manifest with the digest of every file, and rename the folder into place.

        Returns the manifest as written.

        Raises:
            UsageError: another process has written `out` in the meantime.
            ValueError: outside the block; a link or an unusable name in the folder; or the engine
                that the manifest names is not there.
        """
        folder = self._temporary
        if folder is None:
            raise ValueError("commit belongs inside the `with` block, once")
        files = [file for file in sorted(folder.rglob("*")) if not file.is_dir() or file.is_symlink()]
        if any(file.is_symlink() for file in files):
            raise ValueError("a bundle holds plain files, no links")
        listed = tuple(
            FileEntry(path=inside(file.relative_to(folder).as_posix()), sha256=digest(file), size=file.stat().st_size)
            for file in files
        )
        if manifest.engine.file not in {entry.path for entry in listed}:
            raise ValueError(f"the engine {manifest.engine.file} was not written into the bundle")
        final = manifest.model_copy(update={"files": listed})
        text = final.to_json().encode("utf-8")
        (folder / MANIFEST).write_bytes(text)
        (folder / SEAL).write_bytes(seal(text))
        for path in folder.rglob("*"):
            sync(path)
        sync(folder)
        refuse_taken(self.out, self.force)
        replace(folder, self.out)
        self._temporary = None
        sync(self.out.parent)
        return final

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        folder, self._temporary = self._temporary, None
        if folder is None:
            return
        written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        full = error is not None and _is_full(error)
        shutil.rmtree(folder, ignore_errors=error is not None)
        if full:
            raise _disk_full(self.out.parent, written) from error


def is_bundle(folder: Path) -> bool:
    """Whether the folder was written by this package: then, and only then, `--force` may replace it."""
    if not (folder / SEAL).is_file():
        return False
    try:
        stated = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(stated, dict) and {"schema", "engine", "files"} <= stated.keys()


def refuse_taken(out: Path, force: bool) -> None:
    """Raise UsageError unless `out` is free, an empty folder, or a bundle that may be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{out} is a file; choose another --out")
    if not any(out.iterdir()):
        return
    if not is_bundle(out):
        raise UsageError(f"{out} is a folder with other things in it and is never replaced; choose another --out")
    if not force:
        raise UsageError(f"{out} already holds a bundle; add `--force` to replace it, or choose another --out")


def _is_full(error: BaseException | None) -> bool:
    """Whether a full disk or quota stands anywhere in the chain of causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _disk_full(folder: Path, written: int) -> ExportError:
    free = shutil.disk_usage(folder).free
    return ExportError(
        f"the disk or quota of {folder} is full: the bundle needs more than the {written / 1e6:.1f} MB written so far, "
        f"and {free / 1e6:.1f} MB are free now that they are removed. Free some space or choose another --out"
    )
