"""Is this slower than that? Two engines in processes of their own, timed in turns, until the answer is sure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from mednext_edge.environment import Environment, environment
from mednext_edge.errors import UsageError
from mednext_edge.evaluation.ratios import Logs
from mednext_edge.evaluation.regression import Finding, Rules, decide, judge_noise, most_pairs
from mednext_edge.evaluation.workers import Side, Worker

MIN_MS = 20.0
"""Timings shorter than this are made of several calls."""
WARMUP = 3
NOISE_SHARE = 0.4
"""Part of the time that may go into finding out how noisy the machine is."""

Progress = Callable[[str, int, int], None]
Status = Literal["slower", "passed", "undecided", "noisy"]


class Timed(Protocol):
    """Something that can be timed."""

    def time(self, calls: int = 1) -> float:
        """Milliseconds of one of so many calls in a row."""


@dataclass(frozen=True)
class Phase:
    """What one row of pairs came to: `this_ms` and `reference_ms` are the timings of each pair."""

    finding: Finding
    this_ms: tuple[float, ...]
    reference_ms: tuple[float, ...]


@dataclass(frozen=True)
class Duel:
    """The outcome of a comparison.

    Attributes:
        status: `slower` than the gate allows; `passed`; `undecided` when time was up first; `noisy` when two processes
            of the reference could not be shown to be equally fast, and nothing was compared.
        words: the same for people.
        engines: name of each side -> what ran.
        calls: in one timing.
        noise: the reference against itself.
        compared: this against the reference; None on a noisy machine.
        confirmed: the same in new processes, after the first found it slower; None otherwise.
        seconds: that it took, without exports and builds.
    """

    status: Status
    words: str
    patch: tuple[int, ...]
    engines: dict[str, str]
    rules: Rules
    calls: int
    noise: Phase
    compared: Phase | None
    confirmed: Phase | None
    seconds: float
    environment: Environment


class Pairs:
    """Takes pairs of timings, until a moment: a `Draw` that remembers.

    Of every two pairs one starts with this and one with the reference, in random order, so that going second, with the
    other's data in the caches, favours nobody.

    Args:
        until: time of the clock after which no new pair begins, but for the first.
        clock: seconds.
    """

    def __init__(
        self,
        this: Timed,
        reference: Timed,
        *,
        calls: int,
        until: float,
        generator: np.random.Generator,
        progress: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.this, self.reference, self.calls, self.until = this, reference, calls, until
        self.generator, self.progress, self.clock = generator, progress, clock
        self.this_ms: list[float] = []
        self.reference_ms: list[float] = []
        self._order: list[bool] = []

    def draw(self, count: int) -> Logs:
        start = len(self.this_ms)
        for _ in range(count):
            if self.this_ms and self.clock() > self.until:
                break
            if not self._order:
                self._order = [bool(first) for first in self.generator.permutation([True, False])]
            if self._order.pop():
                this = self.this.time(self.calls)
                reference = self.reference.time(self.calls)
            else:
                reference = self.reference.time(self.calls)
                this = self.this.time(self.calls)
            self.this_ms.append(this)
            self.reference_ms.append(reference)
            self.progress(len(self.this_ms))
        logs: Logs = np.log(self.this_ms[start:]) - np.log(self.reference_ms[start:])
        return logs

    def phase(self, finding: Finding) -> Phase:
        return Phase(finding, tuple(self.this_ms), tuple(self.reference_ms))


def duel(
    this: Side,
    reference: Side,
    rules: Rules,
    *,
    seconds: float = 300.0,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
    start: Callable[[Side], Worker] = Worker,
) -> Duel:
    """Compare two sides.

    An alarm has to be raised twice, the second time by processes newly started: where the system puts a process in
    memory can make it some per cent slower for as long as it lives (Mytkowicz et al., ASPLOS 2009).

    Args:
        seconds: to take pairs for; the last timing may run over. Confirming an alarm may take half as much again.
        start: makes the process of a side.

    Raises:
        UsageError: the sides take different inputs.
        MednextEdgeError: of either process.
    """
    generator = np.random.default_rng(seed)
    begun = time.monotonic()

    def phase(a: Worker, b: Worker, what: str, share: float, calls: int, noise: bool = False) -> Phase:
        def told(done: int) -> None:
            progress(what, done, most_pairs(rules))

        until = time.monotonic() + share * seconds
        pairs = Pairs(a, b, calls=calls, until=until, generator=generator, progress=told)
        return pairs.phase(decide(pairs.draw, rules, judge_noise) if noise else decide(pairs.draw, rules))

    compared = confirmed = None
    with start(reference) as b:
        with start(reference) as again:
            calls = _calls(b, again)
            noise = phase(again, b, "the reference against itself", NOISE_SHARE, calls, noise=True)
        quiet = noise.finding.verdict == "passed"
        with start(this) as a:
            if (a.patch, a.channels) != (b.patch, b.channels):
                raise UsageError(
                    f"{this.name} takes {a.channels} channels of {a.patch}, "
                    f"{reference.name} {b.channels} of {b.patch}; give two of the same --patch"
                )
            patch, engines = a.patch, {this.name: a.engine, reference.name: b.engine}
            if quiet:
                _warm(a)
                compared = phase(a, b, "this against the reference", 1 - NOISE_SHARE, calls)
    if compared is not None and compared.finding.verdict == "slower":
        with start(this) as a, start(reference) as b:
            _warm(a)
            _warm(b)
            confirmed = phase(a, b, "the same in new processes", 0.5, calls)
    status, words = _outcome(noise, compared, confirmed, rules)
    return Duel(
        status=status,
        words=words,
        patch=patch,
        engines=engines,
        rules=rules,
        calls=calls,
        noise=noise,
        compared=compared,
        confirmed=confirmed,
        seconds=time.monotonic() - begun,
        environment=environment(),
    )


def _outcome(noise: Phase, compared: Phase | None, confirmed: Phase | None, rules: Rules) -> tuple[Status, str]:
    gate = f"{rules.gate:.0%}"
    if compared is None:
        return "noisy", (
            f"machine too noisy: the reference took {_words(noise.finding)} times as long as itself, which is not "
            f"within the gate of {gate}; nothing was compared"
        )
    last = (confirmed or compared).finding
    words = f"{_words(last)} times as long as the reference ({len(last.logs)} pairs)"
    if last.verdict == "slower":
        return "slower", f"{words}, more than the gate of {gate} allows, in two pairs of processes"
    if confirmed is not None:
        words += "; the first processes seemed slower, new ones were not shown to be"
    if last.verdict == "passed":
        return "passed", f"{words}, within the gate of {gate}"
    return "undecided", f"{words}: neither within the gate of {gate} nor above it; give it more --seconds"


def _words(finding: Finding) -> str:
    ratio = finding.ratio
    return f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


def _calls(*timed: Timed) -> int:
    """How many calls make a timing of `MIN_MS`; warms them up."""
    for one in timed:
        _warm(one)
    fastest = min(one.time() for one in timed)
    return max(1, int(np.ceil(MIN_MS / max(fastest, 1e-3))))


def _warm(one: Timed) -> None:
    """Allocation and just-in-time compilation are no part of what is compared."""
    for _ in range(WARMUP):
        one.time()
