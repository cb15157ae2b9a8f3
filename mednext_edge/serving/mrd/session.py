"""One client: images until it closes, then the answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mednext_edge.data.volume import Volume
from mednext_edge.errors import DataError, ExportError, GeometryError
from mednext_edge.serving.log import Emit
from mednext_edge.serving.metrics import Metrics
from mednext_edge.serving.mrd.answers import ANSWERS, send_answer
from mednext_edge.serving.mrd.volumes import group, volume
from mednext_edge.serving.mrd.wire import Connection, Dropped, Id, Image, MrdLimits, Text, Wire, WireError

Segment = Callable[[Volume], NDArray[np.generic]]
"""[1, Z, Y, X] with its affine -> labels [Z, Y, X]."""


@dataclass(frozen=True)
class MrdServer:
    """What all sessions share.

    Attributes:
        segment: the engine.
        names: label names to values.
        answer: `labels` or `overlay`, unless the client asks for the other.
        limits: of each client.
        metrics, emit: where it counts and tells.
    """

    segment: Segment
    names: dict[str, int]
    answer: str
    limits: MrdLimits
    metrics: Metrics
    emit: Emit

    def serve(self, connection: Connection) -> str:
        """Serve one client to its end. Returns the outcome: `done`, `empty`, `refused`, or the kind of a WireError.

        Raises:
            IntegrityError: the bundle has changed.
            Cancelled: the service stops.
        """
        wire = Wire(connection, self.limits)
        start = time.perf_counter()
        try:
            outcome, images = self._session(wire)
        except WireError as error:
            outcome, images = error.kind, 0
            self._tell(wire, f"ERR {error}")
        seconds = round(time.perf_counter() - start, 3)
        self.metrics.count("sessions_total", outcome=outcome)
        level = "info" if outcome in ("done", "empty") else "warning"
        self.emit("session", level, outcome=outcome, images=images, seconds=seconds)
        return outcome

    def _session(self, wire: Wire) -> tuple[str, int]:
        images: list[Image] = []
        answer, raw = self.answer, 0
        for message in wire.messages():
            if isinstance(message, Image):
                images.append(message)
            elif isinstance(message, Dropped):
                raw += 1
            elif isinstance(message, Text) and message.id is Id.TEXT:
                answer = _wanted(message.text) or answer
        self.metrics.count("images_total", len(images))
        if raw:
            wire.send_text(f"WRN {raw} raw data messages were dropped; this service takes reconstructed images")
        outcome = "done" if images else "empty"
        series = max((int(image.header.image_series_index) for image in images), default=0)
        for members in group(images):
            series = (series + 1) % 2**16
            start = time.perf_counter()
            try:
                whole = volume(members)
                labels = self.segment(whole)
            except (DataError, ExportError, MemoryError) as error:
                kind = error.kind if isinstance(error, GeometryError) else type(error).__name__
                self.metrics.count("failed_total", kind=kind)
                self.emit("failed", "error", kind=kind, reason=str(error))
                wire.send_text(f"ERR {error}")
                outcome = "refused"
                continue
            self.metrics.observe("segmentation_seconds", time.perf_counter() - start)
            send_answer(wire, answer, whole, labels, self.names, series)
        wire.close()
        return outcome, len(images)

    def _tell(self, wire: Wire, words: str) -> None:
        try:
            wire.send_text(words)
            wire.close()
        except WireError:
            self.emit("client-gone", "warning")


def _wanted(text: str) -> str | None:
    """The kind of answer that a client's parameters ask for: `{"parameters": {"output": "overlay"}}`; None for none."""
    try:
        stated = json.loads(text)
        wanted = stated["parameters"]["output"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return wanted if isinstance(wanted, str) and wanted in ANSWERS else None
