"""A build that can be watched, and stopped with Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

Progress = Callable[[str, int, int], None]
"""Called with the name of a phase, the steps done and the steps in all."""


@contextlib.contextmanager
def watch(module: ModuleType, config: Any, progress: Progress | None) -> Iterator[None]:
    """Follow the build that is run with `config` inside the block.

    The builder runs in native code, where an exception of Python's has nowhere to go: an interrupt, or an error of
    `progress`, makes the builder stop at its next step and is raised when the block ends.
    """
    monitor = _monitor(module, progress)
    config.progress_monitor = monitor
    try:
        with _interrupts(monitor):
            yield
    finally:
        config.progress_monitor = None
        if monitor.stopped_by is not None:
            raise monitor.stopped_by from None  # that the build did not succeed is its doing


def _monitor(module: ModuleType, progress: Progress | None) -> Any:
    base: Any = module.IProgressMonitor  # known only once the module is

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.stopped_by: BaseException | None = None
            self.steps: dict[str, int] = {}

        def tell(self, phase: str, done: int) -> None:
            if progress is None or self.stopped_by is not None:
                return
            try:
                progress(phase, done, self.steps[phase])
            except BaseException as error:  # kept for `watch`
                self.stopped_by = error

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self.tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.tell(phase_name, step + 1)
            return self.stopped_by is None

        def phase_finish(self, phase_name: str) -> None:
            self.tell(phase_name, self.steps[phase_name])

    return Monitor()


@contextlib.contextmanager
def _interrupts(monitor: Any) -> Iterator[None]:
    """Note Ctrl-C instead of raising it, in the one thread where Python would."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(signum: int, frame: object) -> None:
        monitor.stopped_by = KeyboardInterrupt()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
