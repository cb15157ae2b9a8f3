"""The decision, on noise of which the truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mednext_edge.errors import UsageError
from mednext_edge.evaluation.ratios import Logs, Ratio
from mednext_edge.evaluation.regression import Finding, Rules, decide, judge, judge_noise, most_pairs, resolution

Noise = Callable[[np.random.Generator, int], Logs]


def quiet(generator: np.random.Generator, count: int) -> Logs:
    return generator.normal(0, 0.02, count)


def heavy(generator: np.random.Generator, count: int) -> Logs:
    """Student's t with 1.5 degrees of freedom: its variance does not exist."""
    return 0.03 * generator.standard_t(1.5, count)


def interrupted(generator: np.random.Generator, count: int) -> Logs:
    """A neighbour takes the core in every third timing, of either side, for up to four times as long."""
    base = generator.normal(0, 0.01, count)
    hits = np.where(generator.random((2, count)) < 1 / 3, generator.uniform(0, np.log(4), (2, count)), 0)
    return base + hits[0] - hits[1]


NOISES = [quiet, heavy, interrupted]


def run(noise: Noise, factor: float, seed: int, rules: Rules | None = None) -> Finding:
    generator = np.random.default_rng(seed)
    return decide(lambda count: np.log(factor) + noise(generator, count), rules or Rules())


@pytest.mark.parametrize("noise", NOISES)
def test_a_planted_slow_down_is_found(noise: Noise) -> None:
    assert [run(noise, 1.10, seed).verdict for seed in range(20)] == ["slower"] * 20


@pytest.mark.parametrize("noise", NOISES)
def test_the_same_thing_raises_no_alarm(noise: Noise) -> None:
    assert {run(noise, 1.0, seed).verdict for seed in range(20)} == {"passed"}


@pytest.mark.parametrize("noise", NOISES)
def test_a_slow_down_at_the_gate_raises_few_alarms(noise: Noise) -> None:
    """The worst case of the error that is allowed: at most 5 % over all looks, so that 6 of 30 are out of question."""
    alarms = sum(run(noise, 1.05, seed, Rules(looks=4)).verdict == "slower" for seed in range(30))
    assert alarms < 6


def test_a_clear_case_takes_few_pairs_and_a_hard_one_many() -> None:
    rules = Rules()
    easy = run(quiet, 2.0, 0)
    hard = run(interrupted, 1.05, 0)
    assert len(easy.logs) == rules.first
    assert len(hard.logs) > 4 * rules.first
    assert resolution(easy) < 0.05


def test_it_ends_undecided_after_the_last_look() -> None:
    rules = Rules(first=4, looks=3)
    taken: list[int] = []

    def draw(count: int) -> Logs:
        taken.append(count)
        return np.log(1.05) + np.resize([1.0, -1.0], count)

    found = decide(draw, rules)
    assert found.verdict == "undecided"
    assert taken == [4, 4, 8]
    assert len(found.logs) == most_pairs(rules) == 16


def test_time_that_is_up_ends_it_at_once() -> None:
    asked: list[int] = []

    def draw(count: int) -> Logs:
        asked.append(count)
        return np.full(3, np.log(2.0))

    found = decide(draw, Rules())
    assert asked == [20], "nobody asks for more"
    assert found.verdict == "undecided", "three pairs that agree are no evidence"
    assert found.ratio.value == pytest.approx(2)


def test_faster_is_not_slower() -> None:
    assert run(quiet, 0.5, 0).verdict == "passed"


@pytest.mark.parametrize(
    ("low", "high", "verdict", "noise"),
    [
        (0.99, 1.01, "passed", "passed"),
        (1.06, 1.20, "slower", "slower"),
        (1.04, 1.20, "undecided", "undecided"),
        (0.70, 0.80, "passed", "slower"),
        (0.90, 1.01, "passed", "undecided"),
        (1.05, 1.10, "undecided", "undecided"),
    ],
)
def test_where_the_interval_lies(low: float, high: float, verdict: str, noise: str) -> None:
    ratio = Ratio(value=(low * high) ** 0.5, low=low, high=high)
    assert judge(ratio, 0.05) == verdict
    assert judge_noise(ratio, 0.05) == noise


def test_a_noisy_machine_is_never_called_quiet() -> None:
    generator = np.random.default_rng(3)
    found = decide(lambda count: generator.normal(0, 2.0, count), Rules(), judge_noise)
    assert found.verdict == "undecided"


def test_looks_share_the_error() -> None:
    assert Rules(confidence=0.9, looks=5).level == pytest.approx(0.98)


@pytest.mark.parametrize("wrong", [{"gate": 0}, {"gate": 1}, {"confidence": 1}, {"first": 3}, {"looks": 0}])
def test_impossible_rules(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="a gate between 0 and 1"):
        Rules(**wrong)  # type: ignore[arg-type]
