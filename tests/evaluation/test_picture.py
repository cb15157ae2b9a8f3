from __future__ import annotations

import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from numpy.typing import NDArray

from mednext_edge.errors import DataError
from mednext_edge.evaluation.picture import COLOURS, comparison, render

SPACING = (2.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def volumes() -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]:
    image = np.random.default_rng(0).normal(size=(1, 6, 30, 24)).astype(np.float32)
    labels = np.zeros((6, 30, 24), np.uint8)
    labels[3, 5:15, 5:15] = 1
    labels[3, 15:20, 5:15] = 2
    labels[4, 5:10, 5:10] = 1
    changed = labels.copy()
    changed[3, 5:15, 5] = 0
    return image, labels, changed


def pixels(png: bytes) -> NDArray[np.float32]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return np.asarray(matplotlib.image.imread(io.BytesIO(png), format="png"))[..., :3]


def magenta(picture: NDArray[np.float32]) -> int:
    """Pixels in the colour of a difference; an image is grey, and no label is magenta."""
    red, green, blue = np.moveaxis(picture, -1, 0)
    return int(((red > 0.7) & (blue > 0.7) & (green < 0.3)).sum())


def test_picture_has_content(volumes: tuple[NDArray[np.generic], ...]) -> None:
    image, labels, changed = volumes
    picture = pixels(render(image, labels, labels, changed, SPACING, labels={"background": 0, "grey": 1, "white": 2}))
    assert picture.shape[0] > 200 and picture.shape[1] > 4 * picture.shape[0] / 2
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    for colour in COLOURS[:2]:
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        # The legend shows the pure colour.
        assert (np.abs(picture - wanted).max(-1) < 0.02).sum() > 50, colour


def test_difference_is_marked_where_there_is_one(volumes: tuple[NDArray[np.generic], ...]) -> None:
    image, labels, changed = volumes
    assert magenta(pixels(render(image, labels, labels, labels, SPACING))) == 0
    assert magenta(pixels(render(image, labels, labels, changed, SPACING))) > 100
    assert magenta(pixels(render(image, labels, None, changed, SPACING))) > 100


def test_panels_that_cannot_be_are_left_out(volumes: tuple[NDArray[np.generic], ...]) -> None:
    image, labels, changed = volumes
    widths = [
        pixels(render(image, reference, baseline, changed, SPACING)).shape[1]
        for reference, baseline in ((labels, labels), (None, labels), (labels, None), (None, None))
    ]
    assert [round(5 * width / widths[0]) for width in widths] == [5, 4, 4, 2]


def test_slice_is_the_one_with_most_foreground(volumes: tuple[NDArray[np.generic], ...]) -> None:
    image, labels, _ = volumes
    elsewhere = image.copy()
    elsewhere[:, [0, 1, 2, 4, 5]] = 0
    assert render(image, labels, labels, labels, SPACING) == render(elsewhere, labels, labels, labels, SPACING)
    elsewhere[:, 3] = 0
    assert render(image, labels, labels, labels, SPACING) != render(elsewhere, labels, labels, labels, SPACING)


@pytest.mark.parametrize("shape", [(1, 1, 20, 20), (2, 5, 9, 31), (7, 16, 16)])
def test_shapes(shape: tuple[int, ...]) -> None:
    labels = np.zeros(shape[-3:], np.int64)
    pixels(render(np.zeros(shape, np.float32), labels, None, labels, SPACING))


def test_more_labels_than_colours() -> None:
    labels = np.arange(400).reshape(1, 20, 20) % 20
    pixels(render(np.zeros((1, 1, 20, 20), np.float32), labels, labels, labels, SPACING))


def test_no_global_state(volumes: tuple[NDArray[np.generic], ...]) -> None:
    import matplotlib.pyplot

    before = matplotlib.pyplot.get_fignums()
    image, labels, changed = volumes
    render(image, labels, labels, changed, SPACING)
    assert matplotlib.pyplot.get_fignums() == before


def test_file_is_whole_or_not_there(
    tmp_path: Path, volumes: tuple[NDArray[np.generic], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, labels, changed = volumes
    comparison(image, labels, labels, changed, tmp_path / "a.png", SPACING)
    assert (tmp_path / "a.png").read_bytes() == render(image, labels, labels, changed, SPACING)

    def full(self: Path, target: Path) -> None:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space"):
        comparison(image, labels, labels, changed, tmp_path / "b.png", SPACING)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_shapes_must_fit(volumes: tuple[NDArray[np.generic], ...]) -> None:
    image, labels, _ = volumes
    with pytest.raises(DataError, match="FP32"):
        render(image, labels, labels[:5], labels, SPACING)
