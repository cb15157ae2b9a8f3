"""The DICOM node as a whole: receiver, worker and sender around one spool, until a signal or a broken bundle."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mednext_edge.optional import require
from mednext_edge.serving.dicom.config import DicomConfig
from mednext_edge.serving.dicom.destinations import Destination
from mednext_edge.serving.dicom.receiver import Receiver
from mednext_edge.serving.dicom.sender import Sender
from mednext_edge.serving.dicom.spool import Spool, disk_full
from mednext_edge.serving.dicom.worker import Worker
from mednext_edge.serving.health import HealthServer
from mednext_edge.serving.log import Emit
from mednext_edge.serving.metrics import Labels, Metrics
from mednext_edge.serving.segmenter import Segmenter

METRICS = {
    "instances_total": "Instances received and put on the disk.",
    "refused_total": "Instances refused, by reason.",
    "associations_total": "Associations asked for, by outcome.",
    "series_total": "Series complete; `repeated` were segmented before and are not again.",
    "failed_total": "Series that could not be segmented, by kind.",
    "segmentation_seconds": "From the first slice read to the segmentation object written.",
    "sent_total": "Tries to send a segmentation object, by destination and outcome.",
    "queue": "Series in each state of the spool.",
    "spool_bytes": "Size of the spool.",
    "associations": "Associations now.",
}

_TICK_S = 0.1
_MEASURE_S = 5.0
_FULL_PAUSE_S = 5.0


class DicomService:
    """A DICOM node that segments.

    Args:
        config: its addresses and limits.
        segmenter: an open bundle.
        spool: the queue.
        destinations: where results go; at least one.
        emit: where it tells.
        http_port: of health and metrics; 0 takes a free one, None has none.

    Raises:
        UsageError: a port is taken.
        TargetUnavailableError: a package for DICOM is not installed.
    """

    def __init__(
        self,
        config: DicomConfig,
        segmenter: Segmenter,
        spool: Spool,
        destinations: Sequence[Destination],
        emit: Emit,
        http_port: int | None = None,
    ) -> None:
        require("highdicom.seg", "dicom")  # what the first result needs: missing, it is missed now
        # pynetdicom's and pydicom's own words quote headers.
        for library in ("pynetdicom", "pydicom"):
            logging.getLogger(library).setLevel(logging.CRITICAL + 1)
        self.config, self.spool, self._emit = config, spool, emit
        self.metrics = Metrics(METRICS)
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._worker = Worker(spool, segmenter, config.limits.voxels, self.metrics, emit)
        self._sender = Sender(spool, destinations, config.retry_s, self.metrics, emit)
        self._threads = [
            threading.Thread(target=self._loop, args=(step,), name=name)
            for name, step in (("worker", self._worker.step), ("sender", self._sender.step))
        ]
        self.receiver = Receiver(config, spool, self.metrics, emit)
        try:
            self.http = None if http_port is None else HealthServer(config.host, http_port, self.metrics, self.health)
        except BaseException:
            self.receiver.close()
            raise
        self._gauges()

    def _gauges(self) -> None:
        def queue() -> dict[Labels, float]:
            return {(("state", state),): float(count) for state, count in self.spool.counts().items()}

        self.metrics.gauge("queue", queue)
        self.metrics.gauge("spool_bytes", lambda: {(): float(self.receiver.spool_bytes)})
        self.metrics.gauge("associations", self.receiver.associations)

    def run(self) -> None:
        """Serve until `stop`; what is being segmented then stays in the queue.

        Raises:
            IntegrityError: the bundle was changed on the disk.
        """
        for thread in self._threads:
            thread.start()
        http = None if self.http is None else self.http.port
        self._emit("listening", host=self.config.host, port=self.receiver.port, http_port=http)
        measured = 0.0
        try:
            while not self._stopping.wait(_TICK_S):
                if time.monotonic() - measured > _MEASURE_S:
                    self.receiver.spool_bytes = self.spool.size()
                    self.spool.purge(self.config.keep_s)
                    measured = time.monotonic()
                self._surviving_a_full_disk(self._complete_due)
        except BaseException as error:
            self._error = self._error or error
        finally:
            self.stop()
            self.receiver.close()
            for thread in self._threads:
                thread.join()
            if self.http is not None:
                self.http.close()
            self._emit("stopped", **self.spool.counts())
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End `run`; may be called from any thread and from a signal handler."""
        self._stopping.set()

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Whether everything runs, and in which words to say so."""
        starting = any(thread.ident is None for thread in self._threads)
        good = not self._stopping.is_set() and all(thread.is_alive() for thread in self._threads)
        status = "ok" if good else "starting" if starting and not self._stopping.is_set() else "stopping"
        return good, {"status": status, "queue": self.spool.counts()}

    def _complete_due(self) -> None:
        # The receiver is asked first: a slice that comes after that is in the spool's time.
        held = self.receiver.held()
        for key in self.spool.due(self.config.quiet_s, self.config.expect, held, self.config.limits.network_s):
            self._complete(key)

    def _surviving_a_full_disk(self, step: Callable[[], None]) -> None:
        """What could not be written stays where it was, and is tried again when there may be room."""
        try:
            step()
        except OSError as error:
            if not disk_full(error):
                raise
            self._emit("disk-full", "error")
            self._stopping.wait(_FULL_PAUSE_S)

    def _complete(self, key: str) -> None:
        job = self.spool.complete(key)
        self.metrics.count("series_total", outcome="repeated" if job is None else "queued")
        if job is None:
            self._emit("series-repeated", key=key)
        else:
            self._emit("series-complete", job=job.name, slices=len(job.instances))

    def _loop(self, step: Callable[[threading.Event], None]) -> None:
        try:
            while not self._stopping.is_set():
                self._surviving_a_full_disk(partial(step, self._stopping))
                self._stopping.wait(_TICK_S)
        except BaseException as error:
            self._error = self._error or error
            self.stop()
