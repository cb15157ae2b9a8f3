"""Preprocessing and the way back: what must come out identical, and what resampling does to shapes."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mednext_edge.data.recipe import Prepared, prepare, restore
from mednext_edge.data.volume import Volume
from mednext_edge.errors import DataError
from mednext_edge.task import Normalization, Preprocessing

CODES = ["".join(code) for axes in itertools.permutations(("LR", "PA", "IS")) for code in itertools.product(*axes)]


def affine_of(codes: str, sizes: tuple[float, ...] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """An affine whose (x, y, z) axes point to `codes`, with voxel sizes."""
    turn = nib.orientations.inv_ornt_aff(
        nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
        ),
        (4, 5, 6),
    )
    return np.asarray(turn @ np.diag([*sizes, 1.0]))


def volume(shape: tuple[int, ...], affine: np.ndarray | None = None, seed: int = 0) -> Volume:
    """An image of [C, Z, Y, X] without a zero in it."""
    voxels = np.random.default_rng(seed).uniform(1, 2, shape).astype(np.float32)
    return Volume(voxels, np.eye(4) if affine is None else affine)


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.stack([(labels == value).astype(np.float32) for value in range(classes)])


@settings(max_examples=60, deadline=None)
@given(
    own=st.sampled_from(CODES),
    wanted=st.none() | st.sampled_from(CODES),
    transpose=st.permutations(range(3)),
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    border=st.integers(0, 2),
    tilt=st.floats(-0.3, 0.3),
    seed=st.integers(0, 9),
)
def test_without_resampling_every_voxel_comes_back(
    own: str,
    wanted: str | None,
    transpose: list[int],
    shape: tuple[int, ...],
    border: int,
    tilt: float,
    seed: int,
) -> None:
    affine = affine_of(own, (0.5, 1.5, 2.5))
    affine[:3, :3] = nib.eulerangles.euler2mat(tilt, tilt, tilt) @ affine[:3, :3]
    inner = volume((2, *shape), affine, seed).array
    image = Volume(np.pad(inner, [(0, 0), *[(border, border)] * 3]), affine)
    labels = np.pad(np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8), border)
    recipe = Preprocessing(
        orientation=wanted, transpose=tuple(transpose), normalization=(Normalization(), Normalization(scheme="none"))
    )
    prepared = prepare(image, recipe, Volume(labels, affine))
    assert prepared.labels is not None
    assert prepared.image.shape == (2, *prepared.labels.shape)
    assert sorted(prepared.labels.shape) == sorted(shape)
    assert sorted(prepared.image[1].ravel()) == sorted(inner[1].ravel())
    np.testing.assert_array_equal(restore(one_hot(prepared.labels, 3), prepared), labels)


@pytest.mark.parametrize("own", CODES[::5])
def test_images_of_one_head_in_any_orientation_become_the_same_input(own: str) -> None:
    ras = np.random.default_rng(0).uniform(1, 2, (4, 5, 6)).astype(np.float32)  # x, y, z
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(own))
    )
    stored = nib.orientations.apply_orientation(ras, turn)
    affine = np.diag([1.0, 2.0, 3.0, 1.0]) @ nib.orientations.inv_ornt_aff(turn, ras.shape)
    recipe = Preprocessing(orientation="RAS", normalization=(Normalization(scheme="none"),))
    prepared = prepare(Volume(stored.T[np.newaxis], affine), recipe)
    np.testing.assert_array_equal(prepared.image[0], ras.T)
    assert prepared.grid.spacing == (3.0, 2.0, 1.0)


def test_caller_keeps_the_image() -> None:
    image = volume((1, 4, 5, 6))
    before = image.array.copy()
    prepare(image, Preprocessing())
    np.testing.assert_array_equal(image.array, before)


def test_crop_is_the_box_of_any_channel() -> None:
    array = np.zeros((2, 6, 7, 8), np.float32)
    array[0, 2, 3, 4] = 1
    array[1, 4, 3, 6] = -1
    image = Volume(array, np.eye(4))
    recipe = Preprocessing(normalization=(Normalization(), Normalization()))
    assert prepare(image, recipe).image.shape == (2, 3, 1, 3)
    assert prepare(image, recipe.model_copy(update={"crop_nonzero": False})).image.shape == (2, 6, 7, 8)
    full = restore(np.stack([np.zeros((3, 1, 3)), np.ones((3, 1, 3))]).astype(np.float32), prepare(image, recipe))
    assert full.sum() == 9
    assert full[2:5, 3:4, 4:7].all()


@pytest.mark.parametrize("shape", [(1, 1, 9, 8), (1, 5, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 1.0), (3.0, 0.5, 0.7), (100.0, 100.0, 100.0)])
@pytest.mark.parametrize("empty", [False, True])
def test_single_slices_and_empty_images(shape: tuple[int, ...], spacing: tuple[float, ...] | None, empty: bool) -> None:
    image = volume(shape)
    if empty:
        image.array[:] = 0
    for masked, late in itertools.product((False, True), repeat=2):
        recipe = Preprocessing(
            spacing=spacing, normalization=(Normalization(masked=masked),), normalize_after_resampling=late
        )
        prepared = prepare(image, recipe, Volume(np.ones(shape[1:], np.uint8), image.affine))
        assert np.isfinite(prepared.image).all()
        assert min(prepared.image.shape) >= 1
        assert prepared.labels is not None
        assert prepared.labels.all()
        np.testing.assert_array_equal(restore(one_hot(prepared.labels, 2), prepared), np.ones(shape[1:]))


def test_shapes_after_resampling() -> None:
    image = volume((1, 10, 20, 30), np.diag([1.0, 2.0, 2.5, 1.0]))  # spacing (z, y, x) = (2.5, 2, 1)
    assert prepare(image, Preprocessing(spacing=(1.0, 1.0, 1.0))).image.shape == (1, 25, 40, 30)
    moved = prepare(image, Preprocessing(spacing=(1.0, 2.5, 2.0), transpose=(2, 0, 1)))
    assert moved.image.shape == (1, 30, 10, 20)
    flat = prepare(image, Preprocessing(spacing=(1.0, 1.0)))
    assert flat.image.shape == (1, 10, 40, 30)


def test_the_coarse_axis_takes_the_nearest_slice() -> None:
    image = volume((1, 4, 8, 8), np.diag([1.0, 1.0, 5.0, 1.0]))
    recipe = Preprocessing(spacing=(2.5, 1.0, 1.0), normalization=(Normalization(scheme="none"),))
    prepared = prepare(image, recipe)
    assert prepared.grid.apart == 0
    np.testing.assert_array_equal(prepared.image[0], np.repeat(image.array[0], 2, axis=0))


def test_both_orders_of_normalising_and_resampling() -> None:
    image = volume((1, 12, 12, 12))
    first, last = (
        prepare(image, Preprocessing(spacing=(2.0, 1.5, 1.0), normalize_after_resampling=late)).image
        for late in (False, True)
    )
    np.testing.assert_allclose((last.mean(), last.std()), (0, 1), atol=1e-5)
    assert first.std() < 0.95  # Interpolation smooths the noise, whose spread was 1 before it.
    np.testing.assert_allclose((first - first.mean()) / first.std(), last, atol=1e-4)


def test_clipping_before_or_after_interpolation_differs_as_it_should() -> None:
    image = volume((1, 6, 6, 6))
    image.array[0, 3, 3, 3] = 1e4
    entry = (Normalization(scheme="ct", upper=2),)
    early, late = (
        prepare(image, Preprocessing(spacing=(0.5,) * 3, normalization=entry, normalize_after_resampling=after)).image
        for after in (False, True)
    )
    assert early.max() <= 2
    assert (late == 2).sum() > (early == 2).sum()


@settings(max_examples=20, deadline=None)
@given(
    spacing=st.tuples(*[st.sampled_from([0.6, 0.8, 1.0, 1.3, 1.7])] * 3),
    own=st.sampled_from(CODES),
    transpose=st.permutations(range(3)),
)
def test_resampling_does_not_move_anything(spacing: tuple[float, ...], own: str, transpose: list[int]) -> None:
    # A distance field is nearly linear, so that its zero surface must come back to within the interpolation error.
    shape, radius = (21, 23, 25), 7.0
    middle = [(n - 1) / 2 + 0.3 for n in shape]
    depth = radius - np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1) - middle, axis=-1)
    recipe = Preprocessing(
        spacing=spacing,
        orientation="RAS",
        transpose=tuple(transpose),
        crop_nonzero=False,
        normalization=(Normalization(scheme="none"),),
    )
    prepared = prepare(Volume(depth[np.newaxis].astype(np.float32), affine_of(own)), recipe)
    inside = restore(np.stack([np.zeros_like(prepared.image[0]), prepared.image[0]]), prepared)
    clear = np.abs(depth) > 0.2
    np.testing.assert_array_equal(inside[clear], (depth > 0)[clear])


def test_restoring_many_classes_equals_argmax_of_the_resampled_stack() -> None:
    image = volume((1, 9, 10, 11))
    prepared = prepare(image, Preprocessing(spacing=(1.5, 1.5, 1.5)))
    scores = np.random.default_rng(1).normal(size=(300, *prepared.image.shape[1:])).astype(np.float32)
    from scipy import ndimage

    zoom = [n / o for n, o in zip(prepared.grid.cropped, prepared.grid.shape, strict=True)]
    stack = np.stack(
        [ndimage.zoom(s.astype(np.float64), zoom, order=1, mode="nearest", grid_mode=True) for s in scores]
    )
    labels = restore(scores, prepared)
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, stack.argmax(0))


def test_ties_go_to_the_first_class() -> None:
    prepared = prepare(volume((1, 2, 2, 2)), Preprocessing())
    assert not restore(np.zeros((4, 2, 2, 2), np.float32), prepared).any()


def refused(image: Volume, labels: Volume | None = None) -> Prepared:
    return prepare(image, Preprocessing(), labels)


def test_what_does_not_fit_is_refused() -> None:
    image = volume((1, 3, 4, 5))
    labels = np.zeros((3, 4, 5), np.uint8)
    with pytest.raises(DataError, match=r"2 channels; expected 1"):
        refused(volume((2, 3, 4, 5)))
    with pytest.raises(DataError, match=r"\[channels, z, y, x\]"):
        refused(Volume(image.array[0], image.affine))
    with pytest.raises(DataError, match="labels of shape"):
        refused(image, Volume(labels[:2], image.affine))
    with pytest.raises(DataError, match="corner"):
        refused(image, Volume(labels, np.diag([-1.0, 1.0, 1.0, 1.0])))
    nearly = image.affine.copy()
    nearly[0, 0] += 1e-3
    refused(image, Volume(labels, nearly))
    with pytest.raises(DataError, match="scores of shape"):
        restore(np.zeros((2, 3, 4, 4), np.float32), refused(image))
