"""Where TensorRT for RTX keeps the kernels that it compiles on the device, so that the next start is quick.

Compiled kernels are executable code: the folder is the user's alone, and each file is checked against its own
digest before it is handed over.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import stat
from pathlib import Path

from mednext_edge.cache import cache_folder

_LOG = logging.getLogger(__name__)


class KernelCache:
    """The kernels of one plan, by one version, on one kind of device.

    A cache only saves time: what cannot be read or written is told to the log and made anew.

    Args:
        plan: the engine file's content.
        version: of the package that compiles.
        arch: compute capability of the device.
        folder: None is `cache_folder`.
    """

    def __init__(self, plan: bytes, version: str, arch: str, folder: Path | None = None) -> None:
        key = hashlib.sha256(f"{hashlib.sha256(plan).hexdigest()} {version} {arch}".encode()).hexdigest()
        self.file = (folder or cache_folder()) / "kernels" / f"{key}.bin"
        self.seal = self.file.with_suffix(".sha256")

    def load(self) -> bytes | None:
        """The kernels; None if there are none that can be trusted."""
        try:
            if not self.file.is_file():
                return None
            reason = self._open_to_others()
            content = self.file.read_bytes()
            stated = self.seal.read_text("ascii") if self.seal.is_file() else ""
        except (OSError, ValueError) as error:
            _LOG.warning("compiled kernels in %s cannot be read (%s); they are compiled again", self.file, error)
            return None
        if reason is None and stated != hashlib.sha256(content).hexdigest():
            reason = "their digest does not match"
        if reason is not None:
            _LOG.warning("compiled kernels in %s are not used: %s; they are compiled again", self.file, reason)
            return None
        return content

    def save(self, content: bytes) -> None:
        """Replace what is there."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.parent.chmod(0o700)
            _write(self.file, content)
            _write(self.seal, hashlib.sha256(content).hexdigest().encode("ascii"))
        except OSError as error:
            _LOG.warning("compiled kernels cannot be kept in %s (%s); the next start compiles again", self.file, error)

    def _open_to_others(self) -> str | None:
        """Why someone else could have written here; None if nobody could."""
        if os.name == "nt":  # a profile's folders are its user's there; the mode bits say nothing
            return None
        for path in (self.file.parent, self.file):
            found = path.stat()
            if found.st_uid != os.getuid():
                return f"{path} belongs to another user"
            if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return f"others may write to {path}"
        return None


def _write(file: Path, content: bytes) -> None:
    """Whole or not at all, readable by the user alone."""
    temporary = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    try:
        temporary.touch(mode=0o600, exist_ok=False)
        temporary.write_bytes(content)
        temporary.replace(file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
