"""The shortest beginning of an order that passes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mednext_edge.quantize.control import Trial, control


def names(count: int) -> list[str]:
    return [f"layer_{i}" for i in range(count)]


class Network:
    """Passes when at least `needed` layers are in float; the drop falls with every one."""

    def __init__(self, needed: int) -> None:
        self.needed = needed
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, kept: Sequence[str]) -> Trial:
        self.asked.append(tuple(kept))
        return Trial(float_layers=len(kept), drop=1 / (1 + len(kept)), upper=None, passed=len(kept) >= self.needed)


@given(count=st.integers(1, 200), share=st.floats(0, 1))
def test_the_fewest_that_pass_in_few_trials(count: int, share: float) -> None:
    needed = round(share * count)
    network = Network(needed)
    kept, trials = control(names(count), network)
    assert kept == names(count)[:needed]
    assert len(trials) == len(network.asked) == len(set(network.asked)) <= 2 * math.log2(count + 1) + 3
    assert all(list(asked) == names(count)[: len(asked)] for asked in network.asked)


def test_all_in_int8_is_tried_first_and_alone_when_it_passes() -> None:
    network = Network(0)
    assert control(names(50), network)[0] == []
    assert network.asked == [()]


def test_nothing_to_choose_from() -> None:
    kept, trials = control([], Network(0))
    assert (kept, len(trials)) == ([], 1)
    kept, trials = control([], Network(1))
    assert (kept, [trial.passed for trial in trials]) == ([], [False])


def test_the_best_that_was_found_when_none_passes() -> None:
    """Not the last: with all layers in float the drop may be larger again."""
    drops = {0: 0.5, 1: 0.4, 2: 0.1, 4: 0.2, 8: 0.3, 10: 0.3}

    def attempt(kept: Sequence[str]) -> Trial:
        return Trial(float_layers=len(kept), drop=0, upper=drops[len(kept)], passed=False)

    kept, trials = control(names(10), attempt)
    assert kept == names(2)
    assert [trial.float_layers for trial in trials] == list(drops)


@pytest.mark.parametrize(("upper", "decisive"), [(None, 0.1), (0.3, 0.3), (-0.2, -0.2)])
def test_what_a_trial_is_decided_on(upper: float | None, decisive: float) -> None:
    assert Trial(float_layers=1, drop=0.1, upper=upper, passed=False).decisive == decisive


@given(count=st.integers(1, 100), share=st.floats(0, 1), budget=st.integers(1, 20))
def test_when_the_budget_is_spent_the_best_until_then_is_kept(count: int, share: float, budget: int) -> None:
    needed = round(share * count)
    network = Network(needed)
    kept, trials = control(names(count), network, more=lambda: len(network.asked) < budget)
    assert 1 <= len(trials) == len(network.asked) <= budget
    passed = [trial.float_layers for trial in trials if trial.passed]
    assert len(kept) == (min(passed) if passed else max(trial.float_layers for trial in trials))
