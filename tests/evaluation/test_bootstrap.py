from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from mednext_edge.evaluation import bootstrap
from mednext_edge.evaluation.bootstrap import class_mean, mean_drop, paired_interval

NAN = float("nan")


def test_means_go_over_cases_then_classes() -> None:
    scores = np.array([[1.0, 0.5, NAN], [NAN, 0.7, NAN], [0.0, 0.9, NAN]])
    assert class_mean(scores) == pytest.approx((0.5 + 0.7) / 2)
    assert np.isnan(class_mean(np.full((2, 2), NAN)))
    assert mean_drop(scores, scores - 0.1) == pytest.approx(0.1)


def test_two_cases_have_a_closed_form() -> None:
    """Draws of two cases: both the first (1/4), both the second (1/4), or one of each."""
    baseline = np.array([[0.9], [0.8]])
    exported = np.array([[0.88], [0.70]])
    assert paired_interval(baseline, exported) == pytest.approx((0.02, 0.10))
    assert paired_interval(baseline, exported, confidence=0.4) == pytest.approx((0.06 - 0.0, 0.06))


def test_three_cases_have_a_closed_form() -> None:
    """27 draws of three; the mean of drops 0, 0, 3 is 0 with probability 8/27 and 3 with 1/27."""
    baseline = np.array([[0.0], [0.0], [3.0]])
    interval = paired_interval(baseline, np.zeros((3, 1)), confidence=1 - 2 * 0.03)
    assert interval == pytest.approx((0.0, 3.0))
    interval = paired_interval(baseline, np.zeros((3, 1)), confidence=1 - 2 * 0.05)
    assert interval == pytest.approx((0.0, 2.0))


def test_same_as_scipy() -> None:
    generator = np.random.default_rng(5)
    drops = generator.gamma(2, 0.01, 30)
    wanted = scipy.stats.bootstrap((drops,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    interval = paired_interval(drops[:, None], np.zeros((30, 1)), samples=20_000)
    assert interval == pytest.approx(tuple(wanted.confidence_interval), rel=0.02)


def test_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(11)
    hits = 0
    for trial in range(300):
        drops = generator.normal(0.01, 0.02, (40, 2))
        interval = paired_interval(0.9 + drops, np.full((40, 2), 0.9), samples=800, seed=trial)
        assert interval is not None
        hits += interval[0] <= 0.01 <= interval[1]
    # 95 % of 300 is 285 with a standard deviation of 3.8; percentile intervals of 40 cases are a little narrow.
    assert 270 <= hits <= 297


def test_pairing_cancels_what_makes_a_case_hard() -> None:
    hard = np.random.default_rng(0).uniform(0.3, 0.95, (20, 1))
    interval = paired_interval(hard, hard - 0.01)
    assert interval == pytest.approx((0.01, 0.01))


def test_same_seed_same_interval_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    baseline, exported = generator.random((2, 12, 3))
    whole = paired_interval(baseline, exported, seed=4)
    assert whole == paired_interval(baseline, exported, seed=4)
    assert whole != paired_interval(baseline, exported, seed=5)
    monkeypatch.setattr(bootstrap, "_BLOCK", 1000)
    assert whole == pytest.approx(paired_interval(baseline, exported, seed=4), abs=1e-12)


def test_missing_scores_are_left_out() -> None:
    generator = np.random.default_rng(3)
    baseline = generator.random((10, 2))
    exported = baseline - 0.1
    baseline[3] = exported[3] = NAN
    baseline[5, 1] = exported[5, 1] = NAN
    interval = paired_interval(baseline, exported)
    assert interval == pytest.approx((0.1, 0.1))


@pytest.mark.parametrize("cases", [0, 1])
def test_no_interval_of_one_case(cases: int) -> None:
    assert paired_interval(np.ones((cases, 2)), np.ones((cases, 2))) is None
    one_scored = np.array([[0.5, 0.6], [NAN, NAN]])
    assert paired_interval(one_scored, one_scored) is None


def test_tables_must_be_of_the_same_cases() -> None:
    with pytest.raises(ValueError, match="shape"):
        paired_interval(np.ones((3, 2)), np.ones((2, 2)))
