"""`benchmarks/edge_runtime.py around`: both runtimes do the same work around the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.edge.around import around
from benchmarks.edge.soak import random_volume
from tests.csrc.edge_bundles import installed_library


def test_both_do_the_same_work(tiny_bundle: Path) -> None:
    installed_library()
    generator = np.random.default_rng(0)
    volumes = [random_volume(generator, 30) for _ in range(2)]
    found = around(tiny_bundle, volumes, rounds=3, mirror=True)
    assert [one.different_voxels for one in found] == [0, 0]
    for one in found:
        for times in (one.seconds, one.processor_s):
            assert {name: len(values) for name, values in times.items()} == {"python": 3, "native": 3}
        assert all(min(values) > 0 for values in one.seconds.values())
