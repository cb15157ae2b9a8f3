"""Cutting and warping against numpy and scipy; where patches lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from mednext_edge.training.augment import draw_matrix
from mednext_edge.training.patches import Sample, choose_centre, cut, reach, warp

RNG = np.random.default_rng


@pytest.mark.parametrize("centre", [(5, 6, 7), (0, 0, 0), (9, 11, 13), (-4, 5, 20)])
def test_cut_is_a_slice_of_the_padded_array(centre: tuple[int, int, int]) -> None:
    array = RNG(0).normal(size=(2, 10, 12, 14)).astype(np.float32)
    sides = (5, 8, 3)
    padded = np.pad(array, [(0, 0), *((20, 20) for _ in sides)])
    starts = [c - n // 2 + 20 for c, n in zip(centre, sides, strict=True)]
    box = tuple(slice(s, s + n) for s, n in zip(starts, sides, strict=True))
    np.testing.assert_array_equal(cut(array, centre, sides).numpy(), padded[(slice(None), *box)])


@pytest.mark.parametrize("patch", [(8, 12, 10), (9, 7), (16, 4, 4)])
def test_no_change_is_no_change(patch: tuple[int, ...]) -> None:
    dims = len(patch)
    array = RNG(0).normal(size=(2, *(30,) * dims)).astype(np.float32)
    matrix = np.eye(dims)
    centre = (15,) * dims
    for mode in ("bilinear", "nearest"):
        found = warp(cut(array, centre, reach(matrix, patch)), matrix, patch, mode=mode)
        torch.testing.assert_close(found, cut(array, centre, patch), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_warp_is_scipys_affine_transform(dims: int) -> None:
    patch, centre = (12, 16, 10)[:dims], (20, 22, 18)[:dims]
    array = RNG(1).normal(size=(1, *(44,) * dims)).astype(np.float32)
    rng, seen = RNG(2), 0
    while seen < 8:
        matrix = draw_matrix(patch, rng)
        if matrix is None:
            continue
        seen += 1
        found = warp(cut(array, centre, reach(matrix, patch)), matrix, patch, mode="bilinear")
        offset = np.array(centre) - matrix @ (np.array(patch) // 2)
        expected = ndimage.affine_transform(array[0], matrix, offset, patch, order=1)
        np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-4)


def sample(labels: np.ndarray) -> Sample:  # type: ignore[type-arg]
    return Sample.of(np.zeros((1, *labels.shape), np.float32), labels, RNG(0))


def test_small_structures_are_as_frequent_as_large_ones() -> None:
    labels = np.zeros((60, 60, 60), np.uint8)
    labels[:30] = 1
    labels[50, 50, 50] = 2
    one = sample(labels)
    assert [len(p) for p in one.places] == [10_000, 1]
    rng = RNG(0)
    centres = [choose_centre(one, (8, 8, 8), foreground=True, rng=rng) for _ in range(400)]
    assert 0.4 < np.mean([c == (50, 50, 50) for c in centres]) < 0.6


@pytest.mark.parametrize("foreground", [True, False])
def test_patches_lie_within_the_image_or_the_image_in_their_middle(foreground: bool) -> None:
    labels = np.zeros((40, 9, 20), np.uint8)
    labels[0, 0, 0] = labels[39, 8, 19] = 1
    one, rng = sample(labels), RNG(0)
    starts = set()
    for _ in range(200):
        z, y, x = choose_centre(one, (16, 16, 20), foreground=foreground, rng=rng)
        assert 8 <= z <= 32
        assert y - 8 == -3  # of seven missing rows three are in front, as in prediction
        assert x == 10
        starts.add(z)
    assert starts == {8, 32} if foreground else len(starts) > 20


def test_slices_for_two_dimensions() -> None:
    labels = np.zeros((12, 40, 40), np.uint8)
    labels[7, 30, 30] = 1
    one, rng = sample(labels), RNG(0)
    assert {choose_centre(one, (16, 16), foreground=True, rng=rng) for _ in range(5)} == {(7, 30, 30)}
    assert {choose_centre(one, (16, 16), foreground=False, rng=rng)[0] for _ in range(200)} == set(range(12))
