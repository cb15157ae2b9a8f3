"""One table type for everything that can be named: models, formats, targets, metrics, commands."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from mednext_edge.errors import UnknownNameError

T = TypeVar("T")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """An error that names the closest known value, for registries and flags alike."""
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.4)
    hint = f" Did you mean `{next(n for n in names if n.lower() == close[0])}`?" if close else ""
    return UnknownNameError(f"unknown {kind} `{name}`.{hint} Known: {', '.join(names)}.")


class Registry(Mapping[str, T]):
    """A read-only mapping from name to entry, filled at import time by `add`.

    Looking up an unknown name raises `UnknownNameError` with the closest match.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        if name in self._entries:
            raise ValueError(f"{self.kind} `{name}` is registered twice")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise unknown_name(self.kind, name, self._entries) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
