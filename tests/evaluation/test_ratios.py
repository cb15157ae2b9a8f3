from __future__ import annotations

import numpy as np
import pytest

from mednext_edge.evaluation.ratios import median_ratio


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Heavy tails (Cauchy): 100 samples of 40 pairs, 90 % intervals."""
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(100):
        found = median_ratio(np.log(1.2) + 0.02 * generator.standard_cauchy(40), confidence=0.9, seed=seed)
        hits += found.low <= 1.2 <= found.high
    assert 83 <= hits <= 98


def test_more_confidence_is_a_wider_interval() -> None:
    logs = np.random.default_rng(1).normal(0, 0.1, 50)
    narrow, wide = median_ratio(logs, confidence=0.8), median_ratio(logs, confidence=0.99)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    assert narrow.value == wide.value


def test_many_pairs_are_drawn_in_blocks() -> None:
    logs = np.random.default_rng(2).normal(0.1, 0.1, 5000)
    found = median_ratio(logs)
    assert found.low < np.exp(0.1) < found.high < 1.12


@pytest.mark.parametrize("logs", [[], [0.0, float("nan")], [[0.0]]])
def test_no_ratio_without_pairs(logs: list[float]) -> None:
    with pytest.raises(ValueError, match="log ratios"):
        median_ratio(np.array(logs))
