"""The drop of a metric: mean, classes, worst case."""

from __future__ import annotations

import numpy as np
import pytest

from mednext_edge.evaluation.bootstrap import paired_interval
from mednext_edge.evaluation.drops import metric_drop

NAN = float("nan")


def test_means_classes_and_the_worst_case() -> None:
    before = np.array([[0.9, 0.8], [0.9, NAN], [0.6, 0.7]])
    after = np.array([[0.8, 0.8], [0.9, NAN], [0.6, 0.3]])
    found = metric_drop(before, after, ["a", "b", "c"], ["one", "two"])
    assert found.mean == pytest.approx((0.1 / 3 + 0.2) / 2)
    assert found.ci95 == paired_interval(before, after)
    assert found.per_class["one"].mean == pytest.approx(0.1 / 3)
    assert found.per_class["two"].mean == pytest.approx(0.2)
    assert found.per_class["two"].ci95 == paired_interval(before[:, [1]], after[:, [1]])
    worst = found.worst_case
    assert worst is not None
    assert (worst.case, worst.label, worst.drop) == ("c", "two", pytest.approx(0.4))


def test_a_class_that_is_nowhere_has_no_drop() -> None:
    before = np.array([[0.9, NAN], [0.8, NAN]])
    found = metric_drop(before, before - 0.1, ["a", "b"], ["one", "two"])
    assert found.mean == pytest.approx(0.1)
    assert found.per_class["two"].mean is None
    assert found.per_class["two"].ci95 is None


def test_no_scores_at_all() -> None:
    nothing = np.full((2, 1), NAN)
    found = metric_drop(nothing, nothing, ["a", "b"], ["one"])
    assert (found.mean, found.ci95, found.worst_case) == (None, None, None)
