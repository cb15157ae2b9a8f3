"""How much memory this process holds at most while something runs."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

INTERVAL_S = 0.01


class PeakMemory:
    """Samples the resident memory of the process from a thread; `mb` is the highest seen, in 1e6 bytes.

    The figure is of the whole process, libraries and other open models included, and a peak shorter
    than the interval may be missed. May be entered again: the peak is then that of all blocks.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._peak = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def mb(self) -> float:
        return self._peak / 1e6

    def __enter__(self) -> PeakMemory:
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._sample()

    def _watch(self) -> None:
        self._sample()
        while not self._stop.wait(INTERVAL_S):
            self._sample()

    def _sample(self) -> None:
        self._peak = max(self._peak, self._process.memory_info().rss)
