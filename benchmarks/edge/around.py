"""The way from voxels to labels without the network: both runtimes around stand-ins for the engine."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.edge.library import EdgeModel, segment_options
from mednext_edge.bundle import verify
from mednext_edge.data.volume import Volume
from mednext_edge.runtime.predictor import Predictor
from mednext_edge.task import Task
from tests.csrc.edge_bundles import FakeNetwork, fake_library, write_fake_bundle


@dataclass(frozen=True)
class Around:
    """One image, in turns.

    Attributes:
        different_voxels: of the labels.
        seconds: by the clock, of each round; `python` and `native`.
        processor_s: the same by the processors' time.
    """

    different_voxels: int
    seconds: dict[str, list[float]]
    processor_s: dict[str, list[float]]


def around(bundle: Path, images: list[Volume], rounds: int, mirror: bool) -> list[Around]:
    """Python and libmednext_edge with a bundle's recipe, windows and classes, and a square in place of its network.

    The stand-ins compute the same, and their time is part of what is measured.
    """
    manifest = verify(bundle)
    task = Task(
        name=manifest.name,
        model=manifest.model,
        preprocessing=manifest.preprocessing,
        inference=manifest.inference,
        labels=manifest.labels,
    )
    with tempfile.TemporaryDirectory() as folder:
        library = fake_library(Path(folder))
        with library.open(write_fake_bundle(Path(folder) / "bundle", task)) as model:
            return [_one(model, FakeNetwork(task), volume, rounds, mirror) for volume in images]


def _one(model: EdgeModel, network: FakeNetwork, volume: Volume, rounds: int, mirror: bool) -> Around:
    predictor, options = Predictor(network, mirror=mirror), segment_options(mirror=mirror)
    ways = {"python": lambda: predictor.predict(volume), "native": lambda: model.segment(volume, options)}
    different = int((ways["python"]() != ways["native"]()).sum())
    found = Around(different, {name: [] for name in ways}, {name: [] for name in ways})
    for index in range(rounds):
        for name in ("python", "native") if index % 2 else ("native", "python"):
            network.inputs.clear()
            start, used = time.perf_counter(), time.process_time()
            ways[name]()
            found.seconds[name].append(time.perf_counter() - start)
            found.processor_s[name].append(time.process_time() - used)
    return found
