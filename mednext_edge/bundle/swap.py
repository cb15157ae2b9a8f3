"""Putting a finished folder in the place of another, so that a kill leaves the one or the other.

`exchange` swaps two folders in one step of the file system (Linux, `renameat2` with
`RENAME_EXCHANGE`: ext4, xfs, btrfs, tmpfs, overlayfs and others). Where that is not to be had, two
renames stand in for it; a kill between the two leaves no folder of the name, and the complete old
one beside it under a recognisable name, from which `recover` puts it back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
from pathlib import Path

import psutil

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NOT_HERE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}
_LEFTOVER = re.compile(r"^\.(?P<name>.+)\.(?P<kind>tmp|old)-(?P<pid>\d+)-[0-9a-f]{8}$")


def sibling(folder: Path, kind: str) -> Path:
    """A fresh hidden name beside `folder` that says whose it is: `.NAME.tmp-PID-xxxxxxxx`."""
    return folder.with_name(f".{folder.name}.{kind}-{os.getpid()}-{secrets.token_hex(4)}")


def _leftovers(folder: Path, kind: str) -> list[Path]:
    """Siblings of this kind whose process is gone."""
    found = []
    for entry in folder.parent.iterdir():
        match = _LEFTOVER.match(entry.name)
        if (
            match
            and (match["name"], match["kind"]) == (folder.name, kind)
            and not _alive(int(match["pid"]))
            and entry.is_dir()
            and not entry.is_symlink()
        ):
            found.append(entry)
    return sorted(found, key=lambda entry: entry.stat().st_mtime)


def _alive(pid: int) -> bool:
    """Whether the process runs; one that was killed but never waited for, as in many containers, does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def recover(folder: Path) -> None:
    """Clear what killed runs left beside `folder`; if one died between two renames, put its old folder back."""
    for old in reversed(_leftovers(folder, "old")):
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(folder)
    for stale in _leftovers(folder, "tmp"):
        shutil.rmtree(stale, ignore_errors=True)


def exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step; False where system or file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NOT_HERE:
        return False
    raise OSError(code, os.strerror(code), str(first))


def replace(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`, existing or not, and remove what was there.

    Once the new folder is in place the work is done: what cannot be removed of the old one (a file
    that another program holds open) stays under its hidden name for the next `recover`.
    """
    if not folder.exists():
        new.rename(folder)
        return
    if exchange(new, folder):
        shutil.rmtree(new, ignore_errors=True)
        return
    old = sibling(folder, "old")
    folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Force a file, or the entries of a folder, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no such call for folders
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
