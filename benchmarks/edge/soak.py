"""Many volumes through one process, and what it holds after each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from mednext_edge.data.volume import Volume

from .library import EdgeLibrary, EdgeModel

WARM = 30
"""Volumes until the allocator and the engine hold what they keep."""
WINDOW = 20
"""Volumes over which the resident memory is averaged, at either end."""


@dataclass(frozen=True)
class Soak:
    """Resident memory in MB (1e6 bytes): after the warm-up, at the end, and the most at any time in between."""

    volumes: int
    opened: int
    start_mb: float
    end_mb: float
    highest_mb: float

    @property
    def growth_mb(self) -> float:
        return self.end_mb - self.start_mb


def random_volume(generator: np.random.Generator, largest: int) -> Volume:
    """An oblique image of any size up to `largest` an axis, as a scanner may send it."""
    shape = tuple(int(n) for n in generator.integers(largest // 3, largest + 1, 3))
    affine = np.eye(4)
    affine[:3, :3] = generator.permutation(np.diag(generator.uniform(0.7, 1.3, 3))) + generator.normal(0, 0.05, (3, 3))
    return Volume(generator.normal(100, 30, (1, *shape)).astype(np.float32), affine)


def soak(
    library: EdgeLibrary,
    bundle: Path,
    volumes: int,
    *,
    reopen: int = 0,
    largest: int = 48,
    progress: Callable[[int, int], None] | None = None,
) -> Soak:
    """Segment `volumes` random images, every second one as a stream.

    Args:
        reopen: also open the bundle anew after so many volumes; 0 opens it once.
        largest: voxels along an axis.
    """
    generator = np.random.default_rng(0)
    process = psutil.Process()
    held: list[float] = []
    opened = 0
    while len(held) < volumes:
        opened += 1
        with library.open(bundle) as model:
            for _ in range(min(reopen or volumes, volumes - len(held))):
                _one(model, random_volume(generator, largest), stream=len(held) % 2 == 1)
                held.append(process.memory_info().rss / 1e6)
                if progress is not None:
                    progress(len(held), volumes)
    warm = held[WARM:]
    return Soak(volumes, opened, float(np.mean(warm[:WINDOW])), float(np.mean(warm[-WINDOW:])), max(warm))


def _one(model: EdgeModel, volume: Volume, *, stream: bool) -> None:
    if not stream:
        model.segment(volume)
        return
    with model.stream(volume) as slices:
        for z in range(0, volume.spatial[0], 4):
            slices.push(z, min(4, volume.spatial[0] - z))
        slices.finish()
