"""Raster images for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (6, 8), mode: str = "RGB") -> Path:
    """An image of noise; size is (rows, columns)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, bands), dtype=np.uint8)
    Image.fromarray(pixels[..., 0] if bands == 1 else pixels, mode=mode if bands > 1 else "L").save(path)
    return path


def mask(path: Path, columns: slice, size: tuple[int, int] = (6, 8), value: int = 255) -> Path:
    """A mask whose columns in the slice are set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size, np.uint8)
    pixels[:, columns] = value
    Image.fromarray(pixels).save(path)
    return path
