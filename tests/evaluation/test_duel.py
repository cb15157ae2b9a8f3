"""Comparisons of processes that only pretend to take time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mednext_edge.errors import UsageError
from mednext_edge.evaluation.duel import Duel, Pairs, duel
from mednext_edge.evaluation.duel_plot import plot
from mednext_edge.evaluation.regression import Rules
from mednext_edge.evaluation.workers import Side

THIS, REFERENCE = Side("this", "a"), Side("reference", "b")


class Pretended:
    """A worker whose timings are what `takes` says."""

    patch, channels = (8, 8, 8), 1

    def __init__(self, side: Side, takes: Callable[[], float], log: list[str]) -> None:
        self.side, self.takes, self.log = side, takes, log
        self.engine = f"pretended {side.source}"

    def time(self, calls: int = 1) -> float:
        self.log.append(self.side.name)
        return self.takes()

    def __enter__(self) -> Pretended:
        self.log.append(f"start {self.side.name}")
        return self

    def __exit__(self, *error: object) -> None:
        self.log.append(f"stop {self.side.name}")


def compare(takes: dict[str, Iterator[float]], noise: float = 0.01, **options: Any) -> tuple[Duel, list[str]]:
    """`takes` has the mean of each newly started process of a side."""
    generator = np.random.default_rng(0)
    log: list[str] = []

    def start(side: Side) -> Any:
        mean = next(takes[side.name])
        return Pretended(side, lambda: mean * float(np.exp(generator.normal(0, noise))), log)

    return duel(THIS, REFERENCE, Rules(first=8, looks=4), start=start, **options), log


def always(ms: float) -> Iterator[float]:
    return (ms for _ in count())


def test_a_slow_down_is_found_in_two_pairs_of_processes() -> None:
    found, log = compare({"this": always(33.0), "reference": always(30.0)})
    assert found.status == "slower"
    assert found.compared is not None and found.confirmed is not None
    assert found.confirmed.finding.ratio.value == pytest.approx(1.1, abs=0.02)
    assert "in two pairs of processes" in found.words and "gate of 5%" in found.words
    assert [word for word in log if word.startswith("start")].count("start this") == 2
    assert found.engines == {"this": "pretended a", "reference": "pretended b"}
    assert found.calls == 1


def test_equals_pass_after_one() -> None:
    found, log = compare({"this": always(30.0), "reference": always(30.0)})
    assert (found.status, found.confirmed) == ("passed", None)
    assert log.count("start this") == 1
    first = next(i for i, word in enumerate(log) if word == "start this")
    assert log[:first].count("start reference") == 2, "the reference runs against itself first"
    assert log.count("stop this") + log.count("stop reference") == 3


def test_a_process_that_was_unlucky_raises_no_alarm() -> None:
    """The first process of this is 20 % slower for as long as it lives."""
    found, _ = compare({"this": iter([36.0, 30.0]), "reference": always(30.0)})
    assert found.status == "passed"
    assert found.compared is not None and found.compared.finding.verdict == "slower"
    assert "new ones were not" in found.words


@pytest.mark.parametrize("takes", [iter([30.0, 40.0, 30.0, 30.0])])
def test_processes_of_the_same_that_differ_are_noise(takes: Iterator[float]) -> None:
    found, _ = compare({"this": always(60.0), "reference": takes})
    assert (found.status, found.compared) == ("noisy", None)
    assert found.words.startswith("machine too noisy: the reference took")


def test_wild_timings_are_noise() -> None:
    found, _ = compare({"this": always(60.0), "reference": always(30.0)}, noise=2.0)
    assert found.status == "noisy"


def test_time_that_is_up_leaves_it_undecided() -> None:
    class Slow(Pretended):
        def time(self, calls: int = 1) -> float:
            time.sleep(0.002)
            return super().time(calls)

    log: list[str] = []
    generator = np.random.default_rng(0)
    noise = {"this": 0.5, "reference": 0.001}

    def start(side: Side) -> Any:
        return Slow(side, lambda: 30 * float(np.exp(generator.normal(0.05, noise[side.name]))), log)

    found = duel(THIS, REFERENCE, Rules(first=8, looks=12), start=start, seconds=0.5)
    assert found.status == "undecided"
    assert found.seconds < 30
    assert "--seconds" in found.words


def test_short_calls_are_timed_several_at_a_time() -> None:
    found, _ = compare({"this": always(3.0), "reference": always(3.0)})
    assert found.calls in (6, 7)


def test_sides_of_different_inputs() -> None:
    def start(side: Side) -> Any:
        made = Pretended(side, lambda: 30.0, [])
        made.patch = (8, 8, 8) if side.name == "this" else (16, 16, 16)
        return made

    with pytest.raises(UsageError, match=r"takes 1 channels of \(8, 8, 8\)"):
        duel(THIS, REFERENCE, Rules(), start=start)


def test_half_of_the_pairs_start_with_either() -> None:
    log: list[str] = []
    sides = [Pretended(side, lambda: 1.0, log) for side in (THIS, REFERENCE)]
    told: list[int] = []
    pairs = Pairs(
        sides[0],
        sides[1],
        calls=1,
        until=time.monotonic() + 60,
        generator=np.random.default_rng(0),
        progress=told.append,
    )
    logs = pairs.draw(20)
    starts = log[::2]
    assert starts.count("this") == starts.count("reference") == 10
    assert len({tuple(starts[i : i + 2]) for i in range(0, 20, 2)}) == 2, "in random order"
    assert (logs == 0).all() and told == list(range(1, 21))


def test_plot(tmp_path: Path) -> None:
    found, _ = compare({"this": always(33.0), "reference": always(30.0)})
    plot(found, tmp_path / "pairs.png")
    assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["pairs.png"]
