"""Each normalisation scheme against its formula."""

from __future__ import annotations

import numpy as np
import pytest

from mednext_edge.data.intensity import SCHEMES, brain_mask, normalize
from mednext_edge.errors import UnknownNameError
from mednext_edge.task import Normalization


@pytest.fixture
def image() -> np.ndarray:
    voxels = np.random.default_rng(0).normal(1e6, 50, (1, 6, 7, 8)).astype(np.float32)
    voxels[:, 0] = 0
    return voxels


def normalized(voxels: np.ndarray, **entry: object) -> np.ndarray:
    copy = voxels.copy()
    normalize(copy, (Normalization.model_validate(entry),), brain_mask(voxels))
    return copy


def test_zscore(image: np.ndarray) -> None:
    exact = image.astype(np.float64)
    np.testing.assert_allclose(normalized(image), (exact - exact.mean()) / exact.std(), atol=1e-5)


def test_masked_zscore(image: np.ndarray) -> None:
    scaled = normalized(image, masked=True)
    inside = image.astype(np.float64)[image != 0]
    assert not scaled[image == 0].any()
    # A large mean leaves the float32 voxels a resolution of 1/16, that is 1e-3 standard deviations.
    np.testing.assert_allclose(scaled[image != 0], (inside - inside.mean()) / inside.std(), atol=2e-3)


def test_ct() -> None:
    voxels = np.array([-2000, -100, 0, 100, 3000], np.float32).reshape(1, 1, 1, 5)
    scaled = normalized(voxels, scheme="ct", mean=50, sd=25, lower=-150, upper=250)
    np.testing.assert_array_equal(scaled.ravel(), [-8, -6, -2, 2, 8])
    masked = normalized(voxels, scheme="ct", mean=50, sd=25, masked=True)
    assert masked.ravel()[1] == -6


def test_rescale_and_none(image: np.ndarray) -> None:
    scaled = normalized(image, scheme="rescale")
    assert (scaled.min(), scaled.max()) == (0, 1)
    np.testing.assert_array_equal(normalized(image, scheme="none"), image)


@pytest.mark.parametrize("scheme", ["zscore", "rescale"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("value", [0.0, 7.25])
def test_a_constant_image_becomes_zero(scheme: str, masked: bool, value: float) -> None:
    voxels = np.full((1, 4, 4, 4), value, np.float32)
    assert not normalized(voxels, scheme=scheme, masked=masked).any()


def test_holes_of_the_brain_belong_to_it() -> None:
    voxels = np.zeros((2, 5, 5, 5), np.float32)
    voxels[0, 1:4, 1:4, 1:4] = 1
    voxels[0, 2, 2, 2] = 0
    voxels[1, 4, 4, 4] = -1
    mask = brain_mask(voxels)
    assert mask.sum() == 28
    assert mask[2, 2, 2]
    assert mask[4, 4, 4]


def test_every_scheme_of_the_schema_is_registered() -> None:
    assert set(SCHEMES) == set(Normalization.model_fields["scheme"].annotation.__args__)  # type: ignore[union-attr]
    with pytest.raises(UnknownNameError, match="zscore"):
        SCHEMES["z-score"]
