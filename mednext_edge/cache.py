"""Where results that only save time are kept from one run to the next."""

from __future__ import annotations

import os
from pathlib import Path

from mednext_edge.task import Frozen


class Keyed(Frozen):
    """A result that is kept under `key`, the digest of everything that it depends on."""

    key: str


def cache_folder() -> Path:
    """`MEDNEXT_CACHE`, else `mednext-edge` in the system's folder for caches."""
    named = os.environ.get("MEDNEXT_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mednext-edge"
