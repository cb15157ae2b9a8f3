"""Destinations that are not there, refuse, or have no room: the object waits and is sent until it is taken."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from pydicom import Dataset

from tests.data.dicom_series import save_slices
from tests.serving.conftest import free_port, storescu, wait_for

from .conftest import Node, StartNode


@contextmanager
def archive(port: int, statuses: list[int]) -> Iterator[list[bytes]]:
    """A DICOMweb server that answers with these, one after the other, and keeps what it was sent."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(statuses[min(len(received), len(statuses)) - 1])
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def outcomes(node: Node) -> list[str]:
    return [event["outcome"] for event in node.of("send")]


def test_stow_that_is_not_there_and_then_refuses(start_node: StartNode, slices: list[Dataset], tmp_path: Path) -> None:
    port = free_port()
    node = start_node(f"http://127.0.0.1:{port}/studies", quiet_s=0.5, retry_s=0.2)
    save_slices(tmp_path / "series", slices)
    assert storescu(node.port, tmp_path / "series").returncode == 0
    node.wait("send", 2)
    assert set(outcomes(node)) == {"unreachable"}
    assert node.service.spool.counts()["outbox"] == 1
    assert node.service.health()[0]
    with archive(port, [503, 409, 200]) as received:
        wait_for(lambda: node.service.spool.counts()["done"] == 1, "the object to be taken")
    assert outcomes(node)[-3:] == ["refused", "refused", "sent"]
    assert len(received) == 3
    assert len({body[body.index(b"DICM") : -60] for body in received}) == 1  # the same object each time


def test_a_folder_without_room(
    start_node: StartNode, slices: list[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (out := tmp_path / "out").mkdir()
    real, full = Path.write_bytes, threading.Event()
    full.set()

    def write(self: Path, data: bytes) -> int:
        if self.parent == out and full.is_set():
            real(self, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    node = start_node(f"file:{out}", quiet_s=0.5, retry_s=0.2)
    save_slices(tmp_path / "series", slices)
    assert storescu(node.port, tmp_path / "series").returncode == 0
    node.wait("send", 2)
    assert node.of("send")[0]["outcome"] == "unreachable"
    assert not list(out.iterdir())
    full.clear()
    wait_for(lambda: node.service.spool.counts()["done"] == 1, "the copy")
    assert [file.suffix for file in out.iterdir()] == [".dcm"]
