from __future__ import annotations

import numpy as np
import pytest

from mednext_edge.errors import DataError, UsageError
from mednext_edge.evaluation.latency import measure, ratio
from mednext_edge.evaluation.report import Latency
from mednext_edge.runtime.session import Array

from .sessions import ReadSession

PATCH = (8, 8, 8)


def latency(rounds: np.ndarray) -> Latency:
    return Latency(
        patch=PATCH,
        threads=None,
        p50_ms=1,
        p90_ms=1,
        p99_ms=1,
        first_ms=1,
        patches_per_s=1,
        rounds_ms=tuple(float(t) for t in rounds),
    )


class Logged(ReadSession):
    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__()
        self.name, self.log = name, log

    def _run(self, x: Array) -> Array:
        self.log.append(self.name)
        return super()._run(x)


def test_rounds_are_interleaved_in_random_order() -> None:
    log: list[str] = []
    sessions = {name: Logged(name, log) for name in "abc"}
    told: list[int] = []
    found = measure(sessions, PATCH, rounds=12, warmup=2, progress=lambda what, done, total: told.append(done))
    calls = [tuple(log[i : i + 3]) for i in range(0, len(log), 3)]
    assert len(calls) == 1 + 2 + 12
    assert all(sorted(call) == ["a", "b", "c"] for call in calls), "every round runs each engine once"
    assert len(set(calls[3:])) > 3, "the order changes from round to round"
    assert told == list(range(1, 13))
    for name in "abc":
        assert len(found[name].rounds_ms) == 12
        assert found[name].patch == PATCH


def test_engines_of_a_round_see_the_same_patch() -> None:
    one, other = ReadSession(), ReadSession()
    measure({"one": one, "other": other}, PATCH, rounds=4, warmup=1)
    for first, second in zip(one.seen, other.seen, strict=True):
        assert (first == second).all()
    assert not (one.seen[-1] == one.seen[-2]).all()


def test_figures_are_of_the_rounds_alone() -> None:
    found = measure({"one": ReadSession()}, PATCH, rounds=7)["one"]
    assert found.p50_ms == pytest.approx(float(np.median(found.rounds_ms)))
    assert found.p90_ms == pytest.approx(float(np.percentile(found.rounds_ms, 90)))
    assert min(found.rounds_ms) <= found.p50_ms <= found.p90_ms <= found.p99_ms <= max(found.rounds_ms)
    assert found.patches_per_s == pytest.approx(1000 / found.p50_ms)
    assert found.threads is None


def test_threads_are_reported_where_the_session_knows() -> None:
    session = ReadSession()
    session.threads = 2  # type: ignore[attr-defined]
    assert measure({"one": session}, PATCH, rounds=1, warmup=0)["one"].threads == 2


def test_ratio_of_a_known_factor() -> None:
    rounds = np.random.default_rng(0).uniform(50, 150, 40)
    found = ratio(latency(3 * rounds), latency(rounds))
    assert (found.value, found.low, found.high) == pytest.approx((3, 3, 3))


def test_ratio_pairs_the_rounds() -> None:
    """A neighbour that slows whole rounds down tenfold does not blur the ratio."""
    generator = np.random.default_rng(1)
    weather = np.where(generator.random(60) < 0.4, 10.0, 1.0)
    noise = generator.normal(0, 0.02, (2, 60))
    found = ratio(latency(2 * weather * np.exp(noise[0])), latency(weather * np.exp(noise[1])))
    assert found.low < 2 < found.high or found.value == pytest.approx(2, rel=0.02)
    assert found.high / found.low < 1.05


def test_ratio_interval_shows_noise() -> None:
    generator = np.random.default_rng(2)
    found = ratio(latency(np.exp(generator.normal(1, 0.5, 30))), latency(np.exp(generator.normal(0, 0.5, 30))))
    assert found.low < np.e < found.high
    assert found.low < found.value < found.high
    assert found.high / found.low > 1.2


def test_wrong_questions() -> None:
    for rounds, warmup in ((0, 0), (1, -1)):
        with pytest.raises(UsageError, match="rounds"):
            measure({"one": ReadSession()}, PATCH, rounds=rounds, warmup=warmup)
    with pytest.raises(UsageError, match="0 engines"):
        measure({}, PATCH)
    with pytest.raises(DataError):
        measure({"one": ReadSession()}, (8, 8))
    with pytest.raises(ValueError, match="rounds"):
        ratio(latency(np.ones(2)), latency(np.ones(3)))
