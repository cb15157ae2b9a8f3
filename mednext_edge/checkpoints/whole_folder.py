"""A new folder that appears whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mednext_edge.errors import DataError, UsageError


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, renamed to it at the end.

    Raises:
        UsageError: `folder` is there already.
        DataError: it cannot be written.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists; choose another --out, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(folder)
    # PyTorch's writer of zip files turns a full disk into a RuntimeError.
    except (OSError, RuntimeError) as error:
        raise DataError(f"{folder} cannot be written: {error}; nothing was left behind") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
