"""Engines and a clock that only pretend to take time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from mednext_edge.export.export import TARGETS
from mednext_edge.export.targets import Job, Target
from mednext_edge.export.tune_race import Watch
from mednext_edge.runtime.session import Array, Session


class Pretended(Session):
    """What a trial would have opened; it cannot run."""

    def __init__(self, job: Job, own: int) -> None:
        self.job, self.task, self.precision, self.patch = job, job.model.task, job.precision, job.patch
        self.provider, self.threads, self.used_threads = "pretended", job.threads, job.threads or own

    def _run(self, x: Array) -> Array:
        pytest.fail("only a watch may ask for its time")

    def close(self) -> None:
        self.job = None  # type: ignore[assignment]


@dataclass
class Machine:
    """Opens and times what is pretended.

    Attributes:
        takes: milliseconds of a job.
        own: threads that an engine takes by itself.
        spread: of single timings, as a fraction.
        open_now: engines that are open at the same time; `most` is the largest number of them.
        jobs: that engines were opened for.
    """

    takes: Callable[[Job], float]
    own: int = 8
    spread: float = 0.01
    opening: float = 0.0
    now: float = 0.0
    jobs: list[Job] = field(default_factory=list)
    most: int = 0
    _open: list[Pretended] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator = np.random.default_rng(0)

    @property
    def watch(self) -> Watch:
        return Watch(self._call, lambda: self.now)

    def target(self, **changes: Any) -> Target:
        """OpenVINO's, with trials that this machine pretends."""
        return replace(TARGETS["openvino"], trial=self._trial, **changes)

    def _trial(self, job: Job) -> Session:
        session = Pretended(job, self.own)
        self.jobs.append(job)
        self.now += self.opening
        self._open = [*(each for each in self._open if each.job is not None), session]
        self.most = max(self.most, len(self._open))
        return session

    def _call(self, session: Session, x: Array) -> float:
        assert isinstance(session, Pretended)
        assert session.job is not None, "this session is closed"
        took = self.takes(session.job) * float(np.exp(self.spread * self.generator.standard_normal()))
        self.now += took / 1e3
        return took
