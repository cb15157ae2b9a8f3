"""nnU-Net's rules for voxel sizes and for the intensities of CT."""

from __future__ import annotations

import numpy as np
import pytest

from mednext_edge.data.dataset import Case, Dataset
from mednext_edge.data.volume import Volume
from mednext_edge.training.fingerprint import ForegroundIntensities, choose_spacing
from mednext_edge.training.task import plan_preprocessing


def test_one_grid_needs_no_other() -> None:
    assert choose_spacing([(1, 1, 1), (1.02, 1, 1)], [(64, 64, 64)] * 2) is None


def test_the_median_of_every_axis() -> None:
    found = choose_spacing([(1, 1, 1), (2, 1, 1), (3, 1, 0.8)], [(64, 64, 64)] * 3)
    assert found == (2, 1, 1)


def test_thick_slices_take_the_tenth_percentile() -> None:
    spacings = [(z, 0.7, 0.8) for z in (2.5, 5.0, 5.0, 5.0, 10.0)]
    assert choose_spacing(spacings, [(30, 512, 512)] * 5) == pytest.approx((3.5, 0.7, 0.8))
    # As many slices as rows: the median stays.
    assert choose_spacing(spacings, [(300, 512, 512)] * 5) == pytest.approx((5.0, 0.7, 0.8))
    # Not finer than the plane.
    fine = [(z, 1.0, 1.0) for z in (0.5, 0.5, 5, 5, 5)]
    assert choose_spacing(fine, [(30, 512, 512)] * 5) == (1.0, 1.0, 1.0)


def test_ct_statistics_are_those_of_the_foreground() -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[:20] = 1
    image = np.where(labels > 0, rng.normal(60, 20, labels.shape), -1000).astype(np.float32)
    found = ForegroundIntensities()
    found.add(image, labels)
    norm = found.normalization()
    assert norm is not None
    assert (norm.scheme, norm.masked) == ("ct", False)
    assert norm.mean == pytest.approx(60, abs=1) and norm.sd == pytest.approx(20, rel=0.05)
    assert norm.lower == pytest.approx(60 - 2.576 * 20, abs=3) and norm.upper == pytest.approx(60 + 2.576 * 20, abs=3)
    assert ForegroundIntensities().normalization() is None


def case(affine: np.ndarray, shape: tuple[int, int, int], channels: int = 2) -> Case:  # type: ignore[type-arg]
    rng = np.random.default_rng(0)
    image = Volume(rng.normal(100, 10, (channels, *shape)).astype(np.float32), affine)
    labels = np.zeros(shape, np.uint8)
    labels[: shape[0] // 2] = 1
    return Case("a", lambda: image, lambda: Volume(labels, affine))


def test_preprocessing_of_a_data_set() -> None:
    """One image is stored with its axes permuted: its spacing counts along the axes it is turned to."""
    straight, turned = np.diag([0.5, 1.0, 3.0, 1.0]), np.zeros((4, 4))
    turned[0, 2], turned[1, 1], turned[2, 0], turned[3, 3] = 0.5, 1.0, 4.0, 1.0  # its x axis runs upwards
    dataset = Dataset(
        "d",
        (case(straight, (10, 20, 40)), case(straight, (10, 20, 40)), case(turned, (40, 20, 10))),
        (),
        {"background": 0, "one": 1},
        ("CT", "T1"),
    )
    recipe = plan_preprocessing(dataset)
    assert recipe.orientation == "RAS"
    assert recipe.spacing == (3.0, 1.0, 0.5)
    assert [n.scheme for n in recipe.normalization] == ["ct", "zscore"]
    assert plan_preprocessing(dataset, spacing="own").spacing is None
    assert plan_preprocessing(dataset, spacing=(1, 1, 1)).spacing == (1, 1, 1)
