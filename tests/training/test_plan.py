"""The plan of a run: what it refuses, its learning rate, and the patch that fits the images."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mednext_edge.errors import UnknownNameError, UsageError
from mednext_edge.training.plan import TrainingPlan, plan_patch


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "must be at least 1"),
        ({"epochs": 0}, "must be at least 1"),
        ({"steps": -1}, "must be at least 1"),
        ({"validate_every": 0}, "must be at least 1"),
        ({"patch": (32, 32, 24)}, "multiple of 16"),
        ({"patch": (16, 16, 16)}, "one at least 32"),
        ({"patch": (0, 32, 32)}, "multiple of 16"),
        ({"patch": (-32, 32, 32)}, "multiple of 16"),
        ({"patch": ()}, "at least 32"),
        ({"patch": (32, 32)}, r"mirror axes \(0, 1, 2\): a patch of 2 sides"),
        ({"mirror_axes": (-1,)}, "mirror axes"),
        ({"foreground": 1.1}, r"not within 0\.\.1"),
        ({"foreground": -0.1}, r"not within 0\.\.1"),
        ({"foreground": math.nan}, r"not within 0\.\.1"),
        ({"learning_rate": 0.0}, "learning rate 0.0; expected a number above 0"),
        ({"learning_rate": -1e-3}, "learning rate"),
        ({"learning_rate": math.nan}, "learning rate"),
        ({"learning_rate": math.inf}, "learning rate"),
        ({"eps": 0.0}, "eps"),
        ({"clip": -12.0}, "clip"),
        ({"weight_decay": -1.0}, "weight decay"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**32}, "seed"),
    ],
)
def test_impossible_plans_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainingPlan(**changes)


def test_unknown_precision_names_the_closest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown precision `bf-16`. Did you mean `bf16`\?"):
        TrainingPlan(amp="bf-16")  # type: ignore[arg-type]


def test_edges_that_are_allowed() -> None:
    changes: tuple[dict[str, Any], ...] = ({"seed": 2**32 - 1}, {"foreground": 0.0}, {"mirror_axes": ()})
    for change in changes:
        assert TrainingPlan(**change)
    assert TrainingPlan(patch=(32, 16), mirror_axes=(0, 1)).patch == (32, 16)


def test_defaults_are_the_authors_recipe() -> None:
    plan = TrainingPlan()
    assert (plan.learning_rate, plan.weight_decay, plan.eps, plan.power, plan.clip) == (1e-3, 3e-5, 1e-4, 0.9, 12.0)
    assert (plan.patch, plan.batch, plan.epochs, plan.steps) == ((128,) * 3, 2, 1000, 250)
    assert plan.total_steps == 250_000


def test_rate_decays_by_epoch() -> None:
    plan = TrainingPlan(epochs=4, steps=3, learning_rate=0.5, power=0.9)
    rates = [plan.rate_at(step) for step in range(plan.total_steps)]
    assert rates == [0.5 * (1 - epoch / 4) ** 0.9 for epoch in range(4) for _ in range(3)]
    assert rates[0] == 0.5
    assert min(rates) > 0
    assert plan.rate_at(plan.total_steps) == rates[-1]


def test_survives_json() -> None:
    plan = TrainingPlan(patch=(32, 48, 32), mirror_axes=(1,), amp="bf16")
    assert TrainingPlan(**json.loads(json.dumps(plan.to_dict()))) == plan


sizes = st.integers(1, 700)


@given(
    shapes=st.integers(2, 3).flatmap(lambda dims: st.lists(st.tuples(*[sizes] * dims), min_size=1, max_size=9)),
    voxels=st.sampled_from([32**3, 64**3, 128**3]),
    divisor=st.sampled_from([4, 16, 32]),
)
def test_planned_patches_fit(shapes: list[tuple[int, ...]], voxels: int, divisor: int) -> None:
    patch = plan_patch(shapes, voxels=voxels, divisor=divisor)
    assert len(patch) == len(shapes[0])
    assert all(n >= divisor and n % divisor == 0 for n in patch)
    assert max(patch) >= 2 * divisor
    # Two voxels at the bottleneck are the least there can be; otherwise the patch keeps to its budget.
    assert math.prod(patch) <= max(voxels, 2 * divisor ** len(patch))
    for axis, n in enumerate(patch):
        median = sorted(shape[axis] for shape in shapes)[len(shapes) // 2]
        assert n - divisor < median or n <= 2 * divisor


@pytest.mark.parametrize(
    ("shapes", "patch"),
    [
        ([(35, 50, 35)], (48, 64, 48)),
        ([(32, 32, 32)], (32, 32, 32)),
        ([(512, 512, 100)], (128, 144, 112)),
        ([(1, 1, 1)], (32, 16, 16)),
        ([(20, 20, 1), (40, 40, 1), (300, 60, 1)], (48, 48, 16)),
        ([(1000, 1000)], (1008, 1008)),
    ],
)
def test_planned_patch_of(shapes: list[tuple[int, ...]], patch: tuple[int, ...]) -> None:
    assert plan_patch(shapes) == patch


def test_no_shape_no_patch() -> None:
    with pytest.raises(UsageError, match="no image shape"):
        plan_patch([])
