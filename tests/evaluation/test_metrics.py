from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric, SurfaceDiceMetric

from mednext_edge.errors import DataError, UnknownNameError
from mednext_edge.evaluation.metrics import METRICS, Mask, agreement, dice, surface_dice

SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.5, 0.5), (0.7, 1.3, 2.9)]


def cube(z: int = 0) -> Mask:
    """A 4x4x4 cube whose first corner lies at (2 + z, 2, 2)."""
    mask = np.zeros((9, 8, 8), bool)
    mask[2 + z : 6 + z, 2:6, 2:6] = True
    return mask


def blobs(seed: int, shape: tuple[int, ...] = (10, 12, 11)) -> tuple[Mask, Mask]:
    """Two ragged masks with much in common, some of it at the border."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    distance = np.sqrt((grid**2).sum(0))
    first = distance + generator.normal(0, 0.15, shape) < 0.8
    return first, np.roll(first, 1, axis=0) ^ (generator.random(shape) < 0.02)


def boundary(mask: Mask) -> np.ndarray:
    """Positions of the voxels with a face to the outside."""
    padded = np.pad(mask, 1)
    inner = padded.copy()
    for axis, way in itertools.product(range(mask.ndim), (-1, 1)):
        inner &= np.roll(padded, way, axis)
    return np.argwhere(padded & ~inner).astype(np.float64)


def surface_dice_by_hand(a: Mask, b: Mask, spacing: tuple[float, ...], tolerance: float = 1.0) -> float:
    first, second = boundary(a) * spacing, boundary(b) * spacing
    apart = np.sqrt(((first[:, None] - second[None]) ** 2).sum(-1))
    near = (apart.min(1) <= tolerance + 1e-9).sum() + (apart.min(0) <= tolerance + 1e-9).sum()
    return float(near / (len(first) + len(second)))


def test_dice_of_cubes() -> None:
    assert dice(cube(), cube()) == 1
    assert dice(cube(), cube(1)) == pytest.approx(2 * 48 / 128, rel=1e-7)
    assert dice(cube()[:, :, :4], cube()[:, :, 4:]) == 0
    half = cube()
    half[:, :, 4:] = False
    assert dice(half, cube()) == pytest.approx(2 * 32 / (32 + 64), rel=1e-7)


def test_surface_dice_of_cubes() -> None:
    # Shifted by one voxel: within the tolerance at 1 mm. At 3 mm only what the surfaces share, or what lies
    # within one in-plane voxel of it, counts: of 56 boundary voxels 12 + 12 on the sides and 16 on one lid.
    assert surface_dice(cube(), cube(1), (1, 1, 1)) == 1
    assert surface_dice(cube(), cube(1), (3, 1, 1)) == pytest.approx(40 / 56, rel=1e-6)
    assert surface_dice(cube(), cube(1), (3, 1, 1), tolerance=3) == 1


def test_spacing_belongs_to_its_axis() -> None:
    one, other = np.zeros((2, 5, 5, 5), bool)
    one[2, 2, 2] = other[3, 2, 2] = True
    assert surface_dice(one, other, (2, 1, 1)) == 0
    assert surface_dice(one, other, (1, 2, 1)) == 1
    assert surface_dice(one, other, (1, 1, 2)) == 1


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(3))
def test_against_pairwise_distances(seed: int, spacing: tuple[float, ...]) -> None:
    first, second = blobs(seed)
    wanted = surface_dice_by_hand(first, second, spacing)
    assert 0 < wanted < 1 or spacing == SPACINGS[0]
    assert surface_dice(first, second, spacing) == pytest.approx(wanted, rel=1e-6)
    overlap = 2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second))
    assert dice(first, second) == pytest.approx(overlap, rel=1e-7)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_against_monai_on_the_whole_volume(spacing: tuple[float, ...]) -> None:
    first, second = (torch.from_numpy(np.pad(mask, 3))[None, None] for mask in blobs(7))
    overlap, surface = DiceMetric(), SurfaceDiceMetric([1.0], include_background=True)
    overlap(first, second)
    surface(first, second, spacing=spacing)
    masks = first[0, 0].numpy(), second[0, 0].numpy()
    assert dice(*masks) == pytest.approx(float(overlap.aggregate()), rel=1e-7)
    assert surface_dice(*masks, spacing) == pytest.approx(float(surface.aggregate()), rel=1e-7)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_empty_space_around_changes_nothing(spacing: tuple[float, ...]) -> None:
    first, second = blobs(3)
    assert first[0].any() or first[:, 0].any() or first[..., 0].any(), "the masks should touch the border"
    grown, other = (np.pad(mask, ((5, 0), (2, 9), (1, 1))) for mask in (first, second))
    assert surface_dice(grown, other, spacing) == surface_dice(first, second, spacing)


@pytest.mark.parametrize("name", ["dice", "nsd"])
def test_empty_masks(name: str) -> None:
    value = METRICS[name].value
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    spacing = (1.0, 1.0, 1.0)
    assert math.isnan(value(empty, empty, spacing))
    assert value(full, empty, spacing) == 0
    assert value(empty, full, spacing) == 0
    assert value(full, full, spacing) == 1


def test_single_slice_is_judged_by_its_contour() -> None:
    first, second = blobs(5, (16, 15))
    wanted = surface_dice_by_hand(first, second, (0.8, 0.9))
    assert wanted < 1
    assert surface_dice(first[None], second[None], (5, 0.8, 0.9)) == pytest.approx(wanted, rel=1e-6)
    assert surface_dice(first, second, (0.8, 0.9)) == pytest.approx(wanted, rel=1e-6)


def test_one_voxel() -> None:
    one = np.ones((1, 1, 1), bool)
    assert dice(one, one) == 1
    assert surface_dice(one, one, (1, 1, 1)) == 1


def test_large_masks_are_counted_exactly() -> None:
    # Beyond 2**24, float32 cannot count by ones.
    first = np.ones((16, 1024, 1025), bool)
    second = first.copy()
    second[0, 0, :2] = False
    exact = 2 * (first.size - 2) / (2 * first.size - 2)
    assert dice(first, second) == pytest.approx(exact, rel=1.2e-7)


def test_shapes_and_spacing_must_fit() -> None:
    with pytest.raises(DataError, match="shape"):
        dice(np.ones((2, 2), bool), np.ones((2, 3), bool))
    with pytest.raises(DataError, match="shape"):
        surface_dice(np.ones((2, 2), bool), np.ones((2, 3), bool), (1, 1))
    for spacing in ((1, 1), (1, 1, 0), (1, 1, math.nan)):
        with pytest.raises(DataError, match="spacing"):
            surface_dice(cube(), cube(), spacing)


def test_agreement() -> None:
    first = np.array([[0, 0, 1, 2], [0, 0, 0, 0]], np.uint8)
    second = np.array([[0, 1, 1, 1], [0, 0, 0, 0]], np.int64)
    assert agreement(first, second) == (6 / 8, 1 / 3)
    assert agreement(0 * first, 0 * second) == (1, None)
    with pytest.raises(DataError):
        agreement(first, second[:1])


def test_unknown_metric_names_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean `dice`"):
        METRICS["dise"]


@pytest.mark.parametrize("seed", range(3))
def test_iou_is_a_function_of_dice(seed: int) -> None:
    a, b = blobs(seed)
    overlap = dice(a, b)
    assert METRICS["iou"].value(a, b, ()) == pytest.approx(overlap / (2 - overlap))
    assert METRICS["iou"].value(a, a, ()) == 1


def test_iou_of_empty_masks_follows_the_rule() -> None:
    filled, empty = cube(), np.zeros_like(cube())
    assert math.isnan(METRICS["iou"].value(empty, empty, ()))
    assert METRICS["iou"].value(filled, empty, ()) == METRICS["iou"].value(empty, filled, ()) == 0


def test_surface_dice_passes_no_warning_on_to_whoever_validates() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert surface_dice(cube(), cube(), (1, 1, 1)) == 1
