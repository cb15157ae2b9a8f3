"""Copies are found however they were stored; other images of the same kind are none."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mednext_edge.data.duplicates import later_copies, thumbnail
from mednext_edge.data.raster import read_raster
from mednext_edge.data.volume import Volume


def scene(seed: int, size: tuple[int, int] = (96, 128)) -> Image.Image:
    """Smooth blobs, as ultrasound images are, with speckle."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 8), dtype=np.uint8)).resize(size[::-1], Image.BICUBIC)
    return Image.fromarray(np.clip(np.asarray(coarse) + generator.normal(0, 8, size), 0, 255).astype(np.uint8))


def test_copies_in_any_form_are_found(tmp_path: Path) -> None:
    scene(0).save(tmp_path / "0.png")
    scene(1).save(tmp_path / "1.png")
    scene(0).save(tmp_path / "2.jpg", quality=40)
    scene(1).resize((60, 200)).save(tmp_path / "3.png")
    marked = np.array(scene(0).convert("RGB"))
    marked[40:43, 20:60] = (0, 255, 0)  # a caliper
    Image.fromarray(marked).save(tmp_path / "4.png")
    scene(2).save(tmp_path / "5.png")
    files = [next(tmp_path.glob(f"{i}.*")) for i in range(6)]
    assert later_copies(partial(read_raster, file) for file in files) == [None, None, 0, 1, 0, None]


def test_nothing_and_images_of_one_value() -> None:
    flat = Volume(np.full((1, 1, 8, 8), 7, np.float32), np.eye(4))
    assert not thumbnail(flat).any()
    assert later_copies([lambda: flat, lambda: flat]) == [None, None]
    assert later_copies([]) == []
