"""A short soak; 500 volumes are in `benchmarks/edge_runtime.py soak`, whose figures are committed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.edge.library import EdgeLibrary
from benchmarks.edge.soak import soak
from mednext_edge.task import Normalization, Preprocessing
from tests.csrc.edge_bundles import fake_task, write_fake_bundle

RECIPES = {
    "whole volume": Preprocessing(orientation="RAS", spacing=(1.0, 1.0, 1.0)),
    "early": Preprocessing(orientation="RAS", normalization=(Normalization(scheme="ct", mean=100, sd=30),)),
}


@pytest.mark.parametrize("name", RECIPES)
def test_memory_does_not_grow(fake_edge: EdgeLibrary, tmp_path: Path, name: str) -> None:
    bundle = write_fake_bundle(tmp_path / "bundle", fake_task(RECIPES[name]))
    found = soak(fake_edge, bundle, 120, reopen=40, largest=32)
    assert (found.volumes, found.opened) == (120, 3)
    assert found.growth_mb < 5, found
