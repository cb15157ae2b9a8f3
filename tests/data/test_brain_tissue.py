"""The demo data: real voxels, a fair split, geometry that still fits the template."""

from __future__ import annotations

import numpy as np
import pytest

from mednext_edge.data.dataset import Dataset, open_dataset
from mednext_edge.data.volume import Volume, label_values


@pytest.fixture(scope="module")
def data() -> Dataset:
    return open_dataset("demo:brain-tissue")


def read(data: Dataset) -> list[tuple[Volume, Volume]]:
    pairs = []
    for case in (*data.training, *data.validation):
        assert case.labels is not None
        pairs.append((case.image(), case.labels()))
    return pairs


def test_description(data: Dataset) -> None:
    assert data.name == "brain-tissue"
    assert data.labels == {"background": 0, "grey-matter": 1, "white-matter": 2}
    assert data.channels == ("T1",)
    assert [case.name for case in data.training] == ["posterior"]
    assert [case.name for case in data.validation] == ["anterior"]


def test_halves_tile_the_template_from_back_to_front(data: Dataset) -> None:
    from nilearn.datasets import load_mni152_template

    template = load_mni152_template(resolution=1)
    (back, back_labels), (front, front_labels) = read(data)
    whole = np.concatenate([back.array, front.array], axis=2)
    np.testing.assert_array_equal(whole[0].T, np.asarray(template.dataobj, np.float32))
    assert back.array.dtype == np.float32
    assert (whole.min(), whole.max()) == (0, 1)

    for half in (back, back_labels):
        np.testing.assert_array_equal(half.affine, template.affine)
    np.testing.assert_array_equal(front.affine, front_labels.affine)
    # The last row of the back and the first of the front are neighbours, and RAS y grows to the front.
    rows = back.spatial[1]
    last, first = (v.affine @ [0, row, 0, 1] for v, row in ((back, rows - 1), (front, 0)))
    np.testing.assert_allclose(first - last, [0, 1, 0, 0], atol=1e-9)


def test_labels_are_tissue(data: Dataset) -> None:
    for image, labels in read(data):
        assert label_values(labels.array) == {0, 1, 2}
        assert labels.array.dtype == np.uint8
        assert labels.spatial == image.spatial
        grey, white = (image.array[0][labels.array == value] for value in (1, 2))
        assert 200_000 < len(white) < len(grey)
        assert np.median(white) > np.median(grey) > 0.3  # T1: white matter is the brightest.
