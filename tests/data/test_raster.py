"""Raster images in and label maps out: depths, colours, orientation, and files that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mednext_edge.data.raster import (
    raster_channels,
    raster_size,
    read_masks,
    read_raster,
    read_raster_labels,
    write_raster_labels,
)
from mednext_edge.errors import DataError

from .pictures import mask, picture

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)


def test_colours_come_first_and_keep_their_values(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    found = read_raster(path)
    assert (found.array.shape, found.array.dtype) == ((3, 1, 6, 8), np.float32)
    assert np.array_equal(np.moveaxis(found.array[:, 0], 0, -1), np.asarray(Image.open(path)))
    assert (raster_channels(path), raster_size(path), found.spacing) == (3, (6, 8), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 1), ("RGBA", 3), ("P", 3), ("1", 1)])
def test_alpha_is_dropped_and_palettes_become_colours(tmp_path: Path, mode: str, channels: int) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(GREY).convert(mode).save(path)
    assert read_raster(path).array.shape == (channels, 1, 6, 8)
    assert raster_channels(path) == channels


def test_alpha_does_not_change_the_colours(tmp_path: Path) -> None:
    colours = Image.open(picture(tmp_path / "a.png"))
    with_alpha = colours.copy()
    with_alpha.putalpha(Image.fromarray(GREY))
    with_alpha.save(tmp_path / "b.png")
    assert np.array_equal(read_raster(tmp_path / "a.png").array, read_raster(tmp_path / "b.png").array)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_to_those_of_eight(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / f"a{suffix}")
    assert np.array_equal(read_raster(tmp_path / f"a{suffix}").array[0, 0], GREY)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_raster(tmp_path / "a.png").array[0, 0], np.rot90(GREY, -1))
    assert raster_size(tmp_path / "a.png") == (8, 6)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_animations_and_pages_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(GREY).save(path, save_all=True, append_images=[Image.fromarray(GREY[::-1])])
    with pytest.raises(DataError, match="animated or has several pages"):
        read_raster(path)


@pytest.mark.parametrize("keep", [0, 20, -30])
def test_truncated_and_foreign_files_are_refused(tmp_path: Path, keep: int) -> None:
    path = picture(tmp_path / "a.jpg", size=(64, 64))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"a\.jpg cannot be read as an image"):
        read_raster(path)


def test_other_formats_under_a_known_name_are_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    with pytest.raises(DataError, match="expected PNG, JPEG, BMP or TIFF"):
        read_raster(tmp_path / "a.png")


def test_huge_images_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    Image.new("1", (40_000, 4_000)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 100_000
    with pytest.raises(DataError, match="40000 x 4000 pixels"):
        read_raster(tmp_path / "a.png")


def test_floats_have_no_known_range(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="no known range"):
        read_raster(tmp_path / "a.tif")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such image"):
        read_raster(tmp_path / "a.png")


def test_several_masks_are_joined(tmp_path: Path) -> None:
    masks = [mask(tmp_path / "a.png", slice(0, 2)), mask(tmp_path / "b.png", slice(1, 4))]
    found = read_masks(masks, 127).array
    assert (found.shape, found.dtype) == ((1, 6, 8), np.uint8)
    assert found[0].sum(0).tolist() == [6, 6, 6, 6, 0, 0, 0, 0]


def test_masks_of_any_mode_are_binary(tmp_path: Path) -> None:
    """BUSI has masks of one bit, of colours and with alpha; JPEG masks have grey borders."""
    pixels = np.zeros((6, 8), np.uint8)
    pixels[:, 3:] = 200
    pixels[:, 2] = 100
    for mode in ("L", "RGB", "RGBA", "1"):
        Image.fromarray(pixels).convert(mode, dither=Image.Dither.NONE).save(tmp_path / f"{mode}.png")
        assert read_masks([tmp_path / f"{mode}.png"], 127).array[0, 0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


def test_masks_are_stretched_by_nearest_pixels(tmp_path: Path) -> None:
    path = mask(tmp_path / "a.png", slice(0, 4), size=(12, 16))
    found = read_masks([path], 127, size=(3, 4)).array[0]
    assert found.tolist() == [[1, 0, 0, 0]] * 3


def test_masks_of_different_sizes_are_refused(tmp_path: Path) -> None:
    masks = [mask(tmp_path / "a.png", slice(0, 2)), mask(tmp_path / "b.png", slice(0, 2), size=(5, 8))]
    with pytest.raises(DataError, match=r"b\.png has 5 x 8 pixels"):
        read_masks(masks, 127)


@pytest.mark.parametrize("largest", [2, 300])
def test_label_maps_survive_the_round_trip(tmp_path: Path, largest: int) -> None:
    labels = np.zeros((1, 6, 8), np.uint16)
    labels[0, 2, 3] = largest
    write_raster_labels(tmp_path / "a.png", labels, read_raster(picture(tmp_path / "image.png")))
    assert np.array_equal(read_raster_labels(tmp_path / "a.png").array, labels)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "image.png"]


def test_what_cannot_be_a_label_map(tmp_path: Path) -> None:
    like = read_raster(picture(tmp_path / "image.png"))
    with pytest.raises(DataError, match="expected one slice"):
        write_raster_labels(tmp_path / "a.png", np.zeros((2, 6, 8), np.uint8), like)
    with pytest.raises(DataError, match=r"integers 0\.\.65535"):
        write_raster_labels(tmp_path / "a.png", np.zeros((1, 6, 8), np.float32), like)
    with pytest.raises(DataError, match="one number a pixel"):
        read_raster_labels(tmp_path / "image.png")
