"""The MRD server as a whole: a thread for each client, one engine for all."""

from __future__ import annotations

import contextlib
import socket
import threading
import traceback
from typing import Any

from mednext_edge.errors import IntegrityError, UsageError
from mednext_edge.serving.health import HealthServer
from mednext_edge.serving.log import Emit
from mednext_edge.serving.metrics import Metrics
from mednext_edge.serving.mrd.session import MrdServer
from mednext_edge.serving.mrd.wire import MrdLimits
from mednext_edge.serving.segmenter import Cancelled, Segmenter

METRICS = {
    "sessions_total": "Sessions, by outcome.",
    "images_total": "Image messages received.",
    "failed_total": "Volumes that could not be segmented, by kind.",
    "segmentation_seconds": "From the images to the labels of one volume.",
    "sessions": "Sessions now.",
}

_TICK_S = 0.2


class MrdService:
    """An MRD server.

    Args:
        host, port: where it listens; port 0 takes a free one.
        segmenter: an open bundle.
        answer: `labels` or `overlay`.
        limits: of each client.
        emit: where it tells.
        http_port: of health and metrics; 0 takes a free one, None has none.

    Raises:
        UsageError: a port is taken.
    """

    def __init__(
        self,
        host: str,
        port: int,
        segmenter: Segmenter,
        answer: str,
        limits: MrdLimits,
        emit: Emit,
        http_port: int | None = None,
    ) -> None:
        self.metrics = Metrics(METRICS)
        self._emit, self._limits, self._host = emit, limits, host
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._sessions: dict[threading.Thread, socket.socket] = {}
        self._server = MrdServer(
            lambda volume: segmenter.segment(volume, self._stopping.is_set),
            segmenter.manifest.labels,
            answer,
            limits,
            self.metrics,
            emit,
        )
        try:
            self._socket = socket.create_server((host, port), backlog=16)
        except OSError as error:
            raise UsageError(
                f"{host}:{port} cannot be listened on: {error.strerror}; choose another --port or --host"
            ) from error
        self.port = int(self._socket.getsockname()[1])
        try:
            self.http = None if http_port is None else HealthServer(host, http_port, self.metrics, self.health)
        except BaseException:
            self._socket.close()
            raise
        self.metrics.gauge("sessions", lambda: {(): float(len(self._sessions))})

    def run(self) -> None:
        """Serve until `stop`.

        Raises:
            IntegrityError: the bundle was changed on the disk.
        """
        http = None if self.http is None else self.http.port
        self._emit("listening", host=self._host, port=self.port, http_port=http)
        self._socket.settimeout(_TICK_S)
        try:
            while not self._stopping.is_set():
                try:
                    connection, _ = self._socket.accept()
                except TimeoutError:
                    continue
                self._start(connection)
        finally:
            self.stop()
            self._socket.close()
            for thread, connection in list(self._sessions.items()):
                with contextlib.suppress(OSError):  # it may have ended by itself
                    connection.shutdown(socket.SHUT_RD)
                thread.join()
            if self.http is not None:
                self.http.close()
            self._emit("stopped")
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End `run`; may be called from any thread and from a signal handler."""
        self._stopping.set()

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Whether it listens, and in which words to say so."""
        good = not self._stopping.is_set()
        return good, {"status": "ok" if good else "stopping", "sessions": len(self._sessions)}

    def _start(self, connection: socket.socket) -> None:
        if len(self._sessions) >= self._limits.sessions:
            self.metrics.count("sessions_total", outcome="busy")
            self._emit("session", "warning", outcome="busy")
            connection.close()
            return
        thread = threading.Thread(target=self._session, args=(connection,), daemon=True)
        self._sessions[thread] = connection
        thread.start()

    def _session(self, connection: socket.socket) -> None:
        try:
            with connection:
                self._server.serve(connection)
        except Cancelled:
            self._emit("session", "warning", outcome="stopped")
        except IntegrityError as error:
            self._error = self._error or error
            self.stop()
        except Exception as error:  # one client must not end the service for the others
            self.metrics.count("sessions_total", outcome="internal")
            where = traceback.extract_tb(error.__traceback__)[-1]
            self._emit("session", "error", outcome="internal", error=f"{type(error).__name__} in {where.name}")
        finally:
            self._sessions.pop(threading.current_thread(), None)
