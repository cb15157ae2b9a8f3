"""Results to their destinations: again and again until each has acknowledged, whatever happens in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from mednext_edge.serving.dicom.destinations import Destination, Outcome
from mednext_edge.serving.dicom.spool import RESULT, Job, Spool
from mednext_edge.serving.log import Emit
from mednext_edge.serving.metrics import Metrics

_FIRST_PAUSE_S = 1.0


class Sender:
    """Sends what lies in the outbox.

    The SOP instance UID of a result follows from its slices and its model, so that a second copy, sent because the
    first acknowledgement was lost, is the same object to whoever receives it.

    Args:
        spool, destinations: from where, to where.
        longest_pause_s: between two tries; the first is a second, and each the double of the one before.
        metrics, emit: where it counts and tells.
    """

    def __init__(
        self, spool: Spool, destinations: Sequence[Destination], longest_pause_s: float, metrics: Metrics, emit: Emit
    ) -> None:
        self._spool, self._destinations, self._longest = spool, destinations, longest_pause_s
        self._metrics, self._emit = metrics, emit
        # By destination, and by (job, destination) where the destination works and refuses the object alone.
        self._pauses: dict[tuple[str, str], tuple[float, float]] = {}

    def step(self, stopping: threading.Event) -> None:
        """One try for everything that is due."""
        for job in self._spool.jobs("outbox"):
            for target in self._destinations:
                if stopping.is_set():
                    return
                if target.name not in job.sent and self._due("", target) and self._due(job.name, target):
                    job = self._send(job, target)
            if {target.name for target in self._destinations} <= set(job.sent):
                self._spool.move(job, "outbox", "done")
                self._pauses = {key: pause for key, pause in self._pauses.items() if key[0] != job.name}

    def _send(self, job: Job, target: Destination) -> Job:
        outcome, word = target.send(self._spool.folder("outbox", job) / RESULT)
        self._metrics.count("sent_total", destination=target.name, outcome=outcome.value)
        level = "info" if outcome is Outcome.SENT else "warning"
        self._emit("send", level, job=job.name, destination=target.name, outcome=outcome.value, detail=word)
        if outcome is Outcome.SENT:
            self._pauses.pop(("", target.name), None)
            return self._spool.save("outbox", job.model_copy(update={"sent": (*job.sent, target.name)}))
        key = ("" if outcome is Outcome.UNREACHABLE else job.name, target.name)
        pause = min(self._longest, 2 * self._pauses[key][0] if key in self._pauses else _FIRST_PAUSE_S)
        self._pauses[key] = (pause, time.monotonic() + pause)
        return job

    def _due(self, job: str, target: Destination) -> bool:
        return time.monotonic() >= self._pauses.get((job, target.name), (0.0, 0.0))[1]
