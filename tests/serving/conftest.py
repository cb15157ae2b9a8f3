"""A tiny bundle to serve, and real peers on loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mednext_edge.serving.segmenter import Segmenter

DEADLINE_S = 90


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_S) -> Any:
    """The first true value of a condition; fails when it does not come."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    pytest.fail(f"waited {seconds} s for {what}")


def connects(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Path:
    """The tiny model for OpenVINO in FP32; read only."""
    return tiny_bundle


@pytest.fixture(scope="session")
def segmenter(bundle: Path) -> Iterator[Segmenter]:
    opened = Segmenter(bundle)
    yield opened
    opened.close()


@dataclass
class Service:
    """`mednext-edge serve` as a process of its own, and what it logged."""

    process: subprocess.Popen[str]
    log: Path
    errors: Path
    listening: dict[str, Any] = field(default_factory=dict)

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [event for event in found if name in (None, event["event"])]

    def kill(self) -> None:
        """As a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(DEADLINE_S)


Serve = Callable[..., Service]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts `mednext-edge serve` with these arguments and waits until it listens."""
    started: list[Service] = []

    def start(*args: object, wait: bool = True) -> Service:
        log, errors = (tmp_path / f"{kind}-{len(started)}" for kind in ("log", "errors"))
        with log.open("w") as out, errors.open("w") as err:
            command = [str(Path(sys.executable).with_name("mednext-edge")), "serve", *map(str, args), "--json"]
            process = subprocess.Popen(
                command, stdout=out, stderr=err, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        service = Service(process, log, errors)
        started.append(service)
        if wait:
            ready = wait_for(lambda: service.events("listening") or process.poll() is not None, "the service")
            assert ready is not True, errors.read_text()
            service.listening = service.events("listening")[0]
        return service

    yield start
    for service in started:
        if service.process.poll() is None:
            service.kill()


@dataclass
class StoreScp:
    """dcmtk's storescp."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path

    @property
    def files(self) -> list[Path]:
        """What came in whole; dcmtk writes in place, so a file counts once it no longer grows."""
        return sorted(self.folder.iterdir())


def need(program: str, package: str) -> str:
    # Python packages bring programs of the same names into the virtual environment.
    path = shutil.which(program, path="/usr/bin:/usr/sbin:/usr/local/bin:/bin")
    if path is None:
        pytest.skip(f"{program} is not installed (Debian package {package})")
    return path


@pytest.fixture
def storescp(tmp_path: Path) -> Iterator[Callable[..., StoreScp]]:
    """Starts dcmtk's storescp, on a given port if need be."""
    started: list[StoreScp] = []

    def start(port: int | None = None, *options: str) -> StoreScp:
        folder = tmp_path / "received"
        folder.mkdir(exist_ok=True)
        port = port or free_port()
        command = [need("storescp", "dcmtk"), "--output-directory", str(folder), *options, str(port)]
        peer = StoreScp(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), port, folder)
        started.append(peer)
        wait_for(lambda: connects(port), "storescp")
        return peer

    yield start
    for peer in started:
        peer.process.kill()
        peer.process.wait()


def storescu(
    port: int, *paths: object, options: tuple[str, ...] = (), called: str = "MEDNEXT"
) -> subprocess.CompletedProcess[str]:
    """Send files and folders with dcmtk's storescu."""
    command = [
        need("storescu", "dcmtk"),
        "-aec",
        called,
        *options,
        "+sd",
        "+r",
        "127.0.0.1",
        str(port),
        *map(str, paths),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
