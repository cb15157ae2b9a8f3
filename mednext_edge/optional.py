"""Packages that a part needs and the installation may lack."""

from __future__ import annotations

import importlib
from typing import Any

from mednext_edge.errors import TargetUnavailableError


def require(module: str, extra: str) -> Any:
    """The module, imported.

    Args:
        module: dotted name.
        extra: the extra of this package that brings it.

    Raises:
        TargetUnavailableError: it is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TargetUnavailableError(
            f"`{module.partition('.')[0]}` is not installed ({error}); install it: `pip install mednext-edge[{extra}]`"
        ) from error
