"""The service as a process that is killed with SIGKILL: nothing lost, nothing doubled."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pynetdicom
import pytest
from pydicom import Dataset
from pydicom.uid import SegmentationStorage

from tests.data.dicom_series import save_slices
from tests.serving.conftest import Serve, Service, free_port, storescu, wait_for


@pytest.fixture
def halves(slices: list[Dataset], tmp_path: Path) -> tuple[Path, Path]:
    save_slices(tmp_path / "first", slices[:3])
    save_slices(tmp_path / "second", slices[3:])
    return tmp_path / "first", tmp_path / "second"


def start(serve: Serve, bundle: Path, tmp_path: Path, address: str) -> Service:
    return serve("dicom", bundle, "--port", 0, "--http-port", 0, "--spool", tmp_path / "spool", "--quiet", 2,
                 "--send-to", address)  # fmt: skip


def test_kill_during_a_series_and_during_sending(
    serve: Serve, bundle: Path, halves: tuple[Path, Path], tmp_path: Path, storescp: Any
) -> None:
    # Nobody listens at the destination yet.
    port = free_port()
    address = f"PACS@127.0.0.1:{port}"
    service = start(serve, bundle, tmp_path, address)
    assert storescu(service.listening["port"], halves[0]).returncode == 0
    service.kill()

    service = start(serve, bundle, tmp_path, address)
    assert storescu(service.listening["port"], halves[1]).returncode == 0
    wait_for(lambda: service.events("send"), "a try to send")
    assert [event["slices"] for event in service.events("series-complete")] == [6]
    assert service.events("send")[0]["outcome"] == "unreachable"
    service.kill()

    # The archive comes up, takes the object, and the service dies before it has the acknowledgement.
    received: list[str] = []
    taken = threading.Event()

    def store(event: Any) -> int:
        received.append(str(event.request.AffectedSOPInstanceUID))
        if len(received) == 1:
            taken.wait(60)
        return 0

    archive = pynetdicom.AE(ae_title="PACS")
    archive.add_supported_context(SegmentationStorage)
    server = archive.start_server(("127.0.0.1", port), block=False, evt_handlers=[(pynetdicom.evt.EVT_C_STORE, store)])
    service = start(serve, bundle, tmp_path, address)
    wait_for(lambda: received, "the object")
    service.kill()
    taken.set()

    service = start(serve, bundle, tmp_path, address)
    wait_for(lambda: service.events("send"), "the object again")
    server.shutdown()
    # At least once, and the same object each time: an archive holds it once.
    assert len(received) == 2
    assert len(set(received)) == 1
    assert service.events("send")[0]["outcome"] == "sent"
    # The sender, who was not sure, sends all again: no second object.
    assert storescu(service.listening["port"], *halves).returncode == 0
    wait_for(lambda: service.events("series-repeated"), "the repeat to be recognised")
    assert service.stop() == 0
    assert service.events("stopped")[0]["done"] == 1
    assert not service.errors.read_text()
    assert len(received) == 2
