"""A DICOM node in this process, with every event it tells."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from mednext_edge.serving.dicom.config import DicomConfig
from mednext_edge.serving.dicom.destinations import destination
from mednext_edge.serving.dicom.service import DicomService
from mednext_edge.serving.dicom.spool import Spool
from mednext_edge.serving.segmenter import Segmenter
from tests.data.dicom_series import make_slices
from tests.serving.conftest import wait_for


@dataclass
class Node:
    """A running service."""

    service: DicomService
    events: list[dict[str, Any]]
    thread: threading.Thread
    errors: list[BaseException]

    @property
    def port(self) -> int:
        return self.service.receiver.port

    def of(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]

    def wait(self, name: str, count: int = 1) -> list[dict[str, Any]]:
        wait_for(lambda: len(self.of(name)) >= count or self.errors, f"{count} x {name}")
        return self.of(name)

    def stop(self) -> None:
        self.service.stop()
        self.thread.join()


StartNode = Callable[..., Node]


@pytest.fixture
def start_node(segmenter: Segmenter, tmp_path: Path) -> Iterator[StartNode]:
    """Starts a node that sends to these addresses; keywords are those of DicomConfig."""
    with ExitStack() as stack:

        def start(*addresses: str, segmenter: Segmenter = segmenter, **config: Any) -> Node:
            return stack.enter_context(running(segmenter, tmp_path / "spool", addresses, config))

        yield start


@contextmanager
def running(segmenter: Segmenter, spool: Path, addresses: tuple[str, ...], values: dict[str, Any]) -> Iterator[Node]:
    config = DicomConfig.model_validate({"port": 0, "quiet_s": 1, "retry_s": 0.5, **values})
    events: list[dict[str, Any]] = []
    errors: list[BaseException] = []
    queue = Spool(spool)
    service = DicomService(
        config,
        segmenter,
        queue,
        [destination(address, config) for address in addresses],
        lambda event, level="info", **fields: events.append({"event": event, "level": level, **fields}),
        http_port=0,
    )

    def run() -> None:
        try:
            service.run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    node = Node(service, events, thread, errors)
    try:
        # The port takes connections before the service runs.
        node.wait("listening")
        yield node
    finally:
        node.stop()
        queue.close()


@pytest.fixture
def slices() -> list[Dataset]:
    """A small series."""
    voxels = np.random.default_rng(0).integers(0, 500, (6, 17, 19)).astype(np.int16)
    return make_slices(voxels)
