"""The MRD server over real connections."""

from __future__ import annotations

import shutil
import socket
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mednext_edge as mx
from mednext_edge.data.volume import Volume
from mednext_edge.errors import IntegrityError, UsageError
from mednext_edge.serving.mrd.service import MrdService
from mednext_edge.serving.mrd.volumes import volume
from mednext_edge.serving.mrd.wire import Image, MrdLimits, Wire
from mednext_edge.serving.segmenter import Segmenter
from tests.serving.conftest import Serve, wait_for

from .streams import Memory, read, session


def talk(port: int, data: bytes) -> list[Any]:
    """Send a session, and read the answer to its end."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        sock.sendall(data)
        parts = []
        while part := sock.recv(65536):
            parts.append(part)
    return read(b"".join(parts))


def start(segmenter: Segmenter, **limits: Any) -> tuple[MrdService, list[dict[str, Any]], threading.Thread]:
    events: list[dict[str, Any]] = []

    def emit(event: str, level: str = "info", **fields: Any) -> None:
        events.append({"event": event, **fields})

    service = MrdService("127.0.0.1", 0, segmenter, "labels", MrdLimits(**limits), emit, 0)
    thread = threading.Thread(target=service.run)
    thread.start()
    return service, events, thread


@pytest.fixture
def running(segmenter: Segmenter) -> Iterator[MrdService]:
    service, _, thread = start(segmenter)
    yield service
    service.stop()
    thread.join()


def expected(bundle: Path, data: bytes) -> Any:
    images = [m for m in Wire(Memory(data), MrdLimits()).messages() if isinstance(m, Image)]
    with mx.open(bundle) as opened:
        whole = volume(images)
        return mx.predict(opened, Volume(whole.array, whole.affine))


def test_four_clients_at_once_get_what_predict_gives(running: MrdService, bundle: Path) -> None:
    rng = np.random.default_rng(0)
    sessions = [session(rng.integers(0, 900, (5, 18, 17)).astype(np.uint16)) for _ in range(4)]
    one = talk(running.port, sessions[0])
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda data: talk(running.port, data), sessions))
    for data, images in zip([sessions[0], *sessions], [one, *answers], strict=True):
        np.testing.assert_array_equal(np.stack([i.data[0, 0] for i in images]), expected(bundle, data))
    assert running.metrics.value("sessions_total", outcome="done") == 5
    assert running.http is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{running.http.port}/metrics", timeout=10) as reply:
        assert b'mednext_edge_sessions_total{outcome="done"} 5' in reply.read()


def test_silent_broken_and_too_many_clients(segmenter: Segmenter) -> None:
    service, events, thread = start(segmenter, sessions=2, network_s=1)
    silent = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(2)]
    wait_for(lambda: service.health()[1]["sessions"] == 2, "two sessions")
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as third:
        assert third.recv(1) == b""  # the third is turned away at once
    silent[0].sendall(b"\x03\x00")
    for sock in silent:
        sock.settimeout(20)
        while sock.recv(4096):
            """The server ends it after a second."""
        sock.close()
    broken = socket.create_connection(("127.0.0.1", service.port))
    broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    broken.sendall(session(np.ones((2, 3, 4), np.uint16))[:500])
    broken.close()
    wait_for(lambda: len([e for e in events if e["event"] == "session"]) == 4, "the sessions' ends")
    outcomes = sorted(e["outcome"] for e in events if e["event"] == "session")
    assert outcomes in (["busy", "gone", "timeout", "timeout"], ["busy", "timeout", "timeout", "truncated"])
    service.stop()
    thread.join()


def test_stopping_does_not_wait_for_clients(segmenter: Segmenter) -> None:
    service, _, thread = start(segmenter)
    with socket.create_connection(("127.0.0.1", service.port)):
        wait_for(lambda: service.health()[1]["sessions"], "the session")
        service.stop()
        thread.join(20)
        assert not thread.is_alive()


def test_port_in_use(segmenter: Segmenter, running: MrdService) -> None:
    with pytest.raises(UsageError, match="choose another --port"):
        MrdService("127.0.0.1", running.port, segmenter, "labels", MrdLimits(), lambda *_, **__: None)
    assert running.http is not None
    with pytest.raises(UsageError, match="choose another --http-port"):
        MrdService("127.0.0.1", 0, segmenter, "labels", MrdLimits(), lambda *_, **__: None, running.http.port)


def test_a_bundle_that_changes_while_it_is_served_ends_the_service(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    opened = Segmenter(tmp_path / "bundle")
    service = MrdService("127.0.0.1", 0, opened, "labels", MrdLimits(), lambda *_, **__: None)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(service.run)
        data = session(np.full((2, 9, 9), 7, np.uint16))
        assert len(talk(service.port, data)) == 2
        weights = tmp_path / "bundle" / "model.bin"
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
        with pytest.raises(EOFError):  # closed without an answer
            talk(service.port, data)
        with pytest.raises(IntegrityError, match=r"model\.bin"):
            running.result(60)
    opened.close()


def test_the_command(serve: Serve, bundle: Path) -> None:
    service = serve("mrd", bundle, "--port", 0, "--http-port", 0, "--send", "overlay")
    answer = talk(service.listening["port"], session(np.full((2, 9, 9), 7, np.uint16)))
    assert len(answer) == 2
    assert service.stop() == 0
    assert [event["event"] for event in service.events()] == ["listening", "session", "stopped"]
