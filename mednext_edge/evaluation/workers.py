"""Engines in processes of their own, which time themselves when told to."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from mednext_edge import errors
from mednext_edge.errors import MednextEdgeError

SCRIPT = Path(__file__).with_name("worker.py")
STOP_S = 10.0
Clock = Literal["wall", "cpu"]


@dataclass(frozen=True)
class Side:
    """One of two that are compared.

    Attributes:
        name: for people.
        source: bundle, or checkpoint.
        package: folder that holds the `mednext_edge` to run it with; None is the one that is installed.
        patch, device, threads: as of `mednext_edge.open`.
        clock: `wall`, or `cpu`: what all threads of the process computed. That one does not run while a neighbour has
            the core, and does not see waiting either.
    """

    name: str
    source: str
    package: Path | None = None
    patch: tuple[int, ...] | None = None
    device: str | None = None
    threads: int | None = None
    clock: Clock = "wall"


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint becomes a bundle: the arguments of `mednext_edge.export`; `calib` names a data set."""

    target: str
    precision: str | None = None
    calib: str | None = None


class Worker:
    """A process that holds one side's engine.

    Attributes:
        patch, channels: of its input.
        engine: provider and precision.

    Raises:
        MednextEdgeError: of the kind that the process met, or when it dies.
    """

    def __init__(self, side: Side) -> None:
        self.side = side
        self._channel = Channel(side.name)
        try:
            found = self._channel.ask(_request(side))
        except BaseException:
            self._channel.close()
            raise
        self.patch = tuple(int(n) for n in found["patch"])
        self.channels = int(found["channels"])
        self.engine = f"{found['provider']}, {found['precision']}"

    def time(self, calls: int = 1) -> float:
        """Milliseconds of one of so many calls in a row, by the side's clock."""
        return float(self._channel.ask({"calls": calls})[self.side.clock])

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()


def export_in_process(side: Side, recipe: Recipe, out: Path) -> Side:
    """Export a checkpoint with the package of a side; returns the side with the bundle in place of the checkpoint.

    Raises:
        MednextEdgeError: of the kind that the process met, or when it dies.
    """
    channel = Channel(side.name)
    try:
        channel.ask({**_request(side), **asdict(recipe), "out": str(out)})
    finally:
        channel.close()
    return replace(side, source=str(out))


def _request(side: Side) -> dict[str, Any]:
    return {**asdict(side), "package": None if side.package is None else str(side.package)}


class Channel:
    """The pipes of a process, and what it wrote to stderr.

    Args:
        name: of what it holds, for errors.
        script: the file that Python runs, which answers as `worker.py` does.
    """

    def __init__(self, name: str, script: Path = SCRIPT) -> None:
        self._name = name
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115, closed with the pipes
        # -P: the folder of the script is no place to import from.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise MednextEdgeError(f"the process of {self._name} ended by itself; its last words: {self._last_words()}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            kind = getattr(errors, found["kind"], None)
            if isinstance(kind, type) and issubclass(kind, MednextEdgeError):
                raise kind(f"{self._name}: {found['error']}")
            raise MednextEdgeError(f"{self._name}: {found['error']} ({found['kind']})")
        return found

    def _last_words(self) -> str:
        self._process.wait(STOP_S)
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return " ".join(lines[-3:]) or "none"

    def close(self) -> None:
        """The end of its input ends the process."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # what is still in the buffer has nobody to read it
                self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stderr.close()
