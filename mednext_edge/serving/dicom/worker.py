"""From a complete series to a segmentation object, one series at a time."""

from __future__ import annotations

import errno
import threading
import time
import traceback
from importlib.metadata import version

from mednext_edge.data.dicom import read_series
from mednext_edge.data.dicom_seg import SegIdentity, write_seg
from mednext_edge.errors import DataError, ExportError, GeometryError, IntegrityError
from mednext_edge.serving.dicom.spool import RESULT, SLICES, Job, Spool, disk_full
from mednext_edge.serving.log import Emit
from mednext_edge.serving.metrics import Metrics
from mednext_edge.serving.segmenter import Cancelled, Segmenter

MAX_ATTEMPTS = 5
"""Segmentations of one series that may die with the whole process before the series is given up."""


class Worker:
    """Segments what lies in `ready`.

    Args:
        spool, segmenter: from where, and with what.
        max_voxels: of one series.
        metrics, emit: where it counts and tells.
    """

    def __init__(self, spool: Spool, segmenter: Segmenter, max_voxels: int, metrics: Metrics, emit: Emit) -> None:
        self._spool, self._segmenter, self._max_voxels = spool, segmenter, max_voxels
        self._metrics, self._emit = metrics, emit
        manifest = segmenter.manifest
        self._identity = SegIdentity.of(manifest.task, version("mednext-edge"), segmenter.digest)

    def step(self, stopping: threading.Event) -> None:
        """Segment the oldest series, if there is one.

        Raises:
            IntegrityError: the bundle is not what was opened; the series stays in the queue.
            OSError: the disk is full; the series stays in the queue.
        """
        waiting = self._spool.jobs("ready")
        if not waiting:
            return
        job = waiting[0]
        if job.attempts >= MAX_ATTEMPTS:
            self._fail(job, "crash", f"the service ended {job.attempts} times while segmenting this series")
            return
        job = self._spool.save("ready", job.model_copy(update={"attempts": job.attempts + 1}))
        try:
            self._segment(job, stopping)
        except Cancelled:
            self._again(job)
        except IntegrityError:
            self._again(job)
            raise
        except GeometryError as error:
            self._fail(job, error.kind, str(error))
        except (DataError, OSError) as error:
            if disk_full(error):
                self._again(job)
                raise OSError(errno.ENOSPC, "the disk is full") from error
            else:
                self._fail(job, "data", str(error) if isinstance(error, DataError) else type(error).__name__)
        except ExportError as error:
            self._fail(job, "engine", str(error))
        except MemoryError:
            self._fail(job, "memory", "not enough memory for this series; lower the limit of voxels or add memory")
        except Exception as error:  # one series must not end the service; the words of the error may quote the image
            where = traceback.extract_tb(error.__traceback__)[-1]
            self._fail(job, "internal", f"{type(error).__name__} in {where.name}, line {where.lineno}")

    def _segment(self, job: Job, stopping: threading.Event) -> None:
        start = time.perf_counter()
        folder = self._spool.folder("ready", job)
        volume = read_series(sorted((folder / SLICES).iterdir()), self._max_voxels)
        labels = self._segmenter.segment(volume, stopping.is_set)
        write_seg(folder / RESULT, labels, volume, self._identity)
        self._spool.move(job, "ready", "outbox")
        seconds = time.perf_counter() - start
        self._metrics.observe("segmentation_seconds", seconds)
        notes = "; ".join(volume.notes) or None
        self._emit("segmented", job=job.name, slices=volume.spatial[0], seconds=round(seconds, 3), notes=notes)

    def _again(self, job: Job) -> None:
        """Leave it in the queue, as if it had not been tried."""
        self._spool.save("ready", job.model_copy(update={"attempts": job.attempts - 1}))

    def _fail(self, job: Job, kind: str, reason: str) -> None:
        self._metrics.count("failed_total", kind=kind)
        self._emit("failed", "error", job=job.name, kind=kind, reason=reason)
        self._spool.save("ready", job.model_copy(update={"kind": kind, "reason": reason}))
        self._spool.move(job, "ready", "failed")
