"""`mednext-edge serve` as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

START_S = 120
"""Until it listens; reading a large engine takes most of it."""
STOP_S = 60


@dataclass(frozen=True)
class Service:
    """A running service.

    Attributes:
        port: where it listens.
        process: its own, without a shell around it.
        log: its events, one JSON object a line.
    """

    port: int
    process: psutil.Process
    log: Path

    def resident_mb(self) -> float:
        """What it holds in memory, in MB (1e6 bytes)."""
        return float(self.process.memory_info().rss) / 1e6

    def events(self) -> list[dict[str, Any]]:
        """What it has told so far, in whole lines."""
        lines = self.log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def complaints(self) -> dict[str, int]:
        """How often it warned of what, or named an error."""
        told = [event for event in self.events() if event["level"] != "info"]
        words = (" ".join(str(e[key]) for key in ("event", "outcome", "kind", "reason") if key in e) for e in told)
        return dict(Counter(words))


@contextmanager
def serving(folder: Path, kind: str, *options: object) -> Iterator[Service]:
    """Start `mednext-edge serve KIND OPTIONS`, on free ports of this machine, and end it again.

    Args:
        folder: for its log.

    Raises:
        RuntimeError: it did not listen in time, or ended by itself; with its own words.
    """
    command = [str(Path(sys.executable).with_name("mednext-edge")), "serve", kind, *map(str, options)]
    log, errors = folder / "events.jsonl", folder / "errors.txt"
    with log.open("w") as out, errors.open("w") as err:
        started = subprocess.Popen([*command, "--port", "0", "--http-port", "0", "--json"], stdout=out, stderr=err)
    try:
        end = time.monotonic() + START_S
        service = Service(0, psutil.Process(started.pid), log)
        while not (listening := [event for event in service.events() if event["event"] == "listening"]):
            if started.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{' '.join(command)} does not listen: {errors.read_text()[-2000:]}")
            time.sleep(0.1)
        yield Service(listening[0]["port"], service.process, log)
        if started.poll() is not None:
            raise RuntimeError(f"the service ended with {started.returncode}: {errors.read_text()[-2000:]}")
    finally:
        started.terminate()
        try:
            started.wait(STOP_S)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
