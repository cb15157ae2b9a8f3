"""TensorRT's log as Python's: what it says is kept for error messages, and nothing reaches stdout."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

LOG = logging.getLogger("mednext_edge.nvidia")

_KEPT = {"INTERNAL_ERROR", "ERROR"}
"""Severities that go into error messages; at the time they are said they are debug output."""


@functools.cache
def logger(module: ModuleType) -> Any:
    """The `ILogger` that all of a module's builders, parsers and runtimes share.

    TensorRT keeps the first logger it is given for the life of the process and sends some messages there whatever a
    later object was made with, so there is one, and it is never released.

    Args:
        module: TensorRT or TensorRT for RTX.
    """
    base: Any = module.ILogger  # known only once the module is
    levels = {"WARNING": logging.WARNING}

    class Log(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.sinks: list[list[str]] = []
            self.said: set[str] = set()

        def log(self, severity: Any, msg: str) -> None:
            # It says the same for each of a hundred layers, and again for each architecture.
            LOG.log(logging.DEBUG if msg in self.said else levels.get(severity.name, logging.DEBUG), "%s", msg)
            self.said.add(msg)
            if severity.name in _KEPT:
                for sink in self.sinks:
                    sink.append(msg)

    return Log()


@contextlib.contextmanager
def collected(module: ModuleType) -> Iterator[list[str]]:
    """The error lines that a module logs inside the block, oldest first."""
    log, lines = logger(module), list[str]()
    log.sinks.append(lines)
    try:
        yield lines
    finally:
        log.sinks[:] = [sink for sink in log.sinks if sink is not lines]
