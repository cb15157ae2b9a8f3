"""From slices to a volume: order, affine, and every fault by its name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mednext_edge.data.slices import Slice, Vector, stack
from mednext_edge.errors import GeometryError


def slices(count: int = 5, step: float = 2.0) -> list[Slice]:
    return [
        Slice(f"slice {z}", (-10, -20, 30 + step * z), (1, 0, 0), (0, 1, 0), (1.0, 1.5), (4, 6), 2.0)
        for z in range(count)
    ]


def moved(one: Slice, by: Vector) -> Slice:
    x, y, z = (a + b for a, b in zip(one.position, by, strict=True))
    return replace(one, position=(x, y, z))


def test_affine_is_that_of_the_standard_in_ras() -> None:
    found = stack(slices()[::-1])
    assert found.order == (4, 3, 2, 1, 0)
    # PS3.3, equation C.7.6.2.1-1, then x and y negated.
    np.testing.assert_allclose(found.affine, [[-1.5, 0, 0, 10], [0, -1, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1]])


def test_slices_are_stacked_along_their_normal() -> None:
    turned = [replace(s, row=(0.0, 1.0, 0.0), column=(1.0, 0.0, 0.0)) for s in slices()]
    found = stack(turned)
    assert found.order == (4, 3, 2, 1, 0)
    assert found.affine[2, 2] == -2


def test_oblique() -> None:
    c, s = np.cos(0.3), np.sin(0.3)
    row, column, normal = np.array([c, s, 0]), np.array([-s * c, c * c, s]), np.array([s * s, -s * c, c])
    tilted = [
        replace(one, row=tuple(row), column=tuple(column), position=tuple(normal * 2 * z))
        for z, one in enumerate(slices())
    ]
    found = stack(tilted)
    np.testing.assert_allclose(found.affine[:3, 2], 2 * normal * [-1, -1, 1], atol=1e-12)


def test_one_slice_is_as_deep_as_it_is_thick() -> None:
    assert stack(slices(1)).affine[2, 2] == 2


def test_rounded_positions_are_forgiven() -> None:
    rng = np.random.default_rng(0)
    stack([moved(s, tuple(rng.uniform(-0.01, 0.01, 3))) for s in slices(50)])


@pytest.mark.parametrize(
    ("kind", "words", "change"),
    [
        ("gap", "1 missing", lambda s: s[:2] + s[3:]),
        ("gap", "2 missing", lambda s: [*s[:2], s[4], moved(s[4], (0, 0, 2))]),
        ("duplicate", "share", lambda s: [*s, replace(s[2], name="again")]),
        ("uneven", "even", lambda s: [*s[:4], moved(s[4], (0, 0, -0.5))]),
        ("tilt", "26.6°", lambda s: [moved(one, (0, z, 0)) for z, one in enumerate(s)]),
        ("size", "(4, 7)", lambda s: [*s[:4], replace(s[4], shape=(4, 7))]),
        ("spacing", "1.01", lambda s: [*s[:4], replace(s[4], spacing=(1.01, 1.5))]),
        ("orientation", "parallel", lambda s: [*s[:4], replace(s[4], row=(0, 0, 1.0))]),
        ("invalid", "unit vectors", lambda s: [replace(one, row=(0.5, 0, 0)) for one in s]),
        ("invalid", "unit vectors", lambda s: [replace(one, column=(1, 0, 0)) for one in s]),
        ("invalid", "millimetres", lambda s: [moved(s[0], (float("nan"), 0, 0)), *s[1:]]),
        ("invalid", "over 0", lambda s: [replace(one, spacing=(0.0, 1.0)) for one in s]),
        ("empty", "no slice", lambda s: []),
    ],
)
def test_faults(kind: str, words: str, change: object) -> None:
    assert callable(change)
    with pytest.raises(GeometryError) as caught:
        stack(change(slices()))
    assert caught.value.kind == kind
    assert words in str(caught.value)


def test_a_tilt_within_half_a_pixel_is_kept_in_the_affine() -> None:
    found = stack([moved(one, (0, 0.1 * z, 0)) for z, one in enumerate(slices())])
    np.testing.assert_allclose(found.affine[:3, 2], [0, -0.1, 2])
