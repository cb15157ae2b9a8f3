"""Fixtures that every part of the suite may use."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mednext_edge as mx
from mednext_edge.models.config import MedNeXtConfig
from mednext_edge.models.families import FAMILIES
from mednext_edge.models.loaded import LoadedModel, Source
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.task import Inference, Preprocessing, Task
from tests.graphs import export_once
from tests.once import once

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, those with most of them in front: no process then ends with a long one alone."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that an earlier run has kept decides a test."""
    monkeypatch.setenv("MEDNEXT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _no_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is exported does not depend on how busy the machine is, unless a test asks for it."""
    monkeypatch.setenv("MEDNEXT_TUNE", "0")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images, or a skip that says how to name it."""
    folder = Path(os.environ.get("MEDNEXT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; name their folder in MEDNEXT_DATA")
    return folder


@pytest.fixture(scope="session")
def hippocampus(shared_data: Path) -> Path:
    """Task04 of the Medical Segmentation Decathlon, with its dataset.json."""
    folder = shared_data / "hippocampus"
    if not (folder / "dataset.json").is_file():
        pytest.skip(f"no dataset.json in {folder}")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _graphs_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The commands and functions under test export a network once a run; see `tests/graphs.py`."""
    with pytest.MonkeyPatch.context() as patched:
        export_once(tmp_path_factory, patched)
        yield


@pytest.fixture(scope="session")
def tiny_model() -> LoadedModel:
    """A two-level 3-D MedNeXt with random weights, one channel, three classes and patches of 16 voxels; read only."""
    config = MedNeXtConfig(
        classes=3, channels=4, expansion=(2,) * 5, down_expansion=(2,) * 2, blocks=(1,) * 5, down_grn=(False,) * 2
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MedNeXt(config).eval()
    task = Task(
        name="tiny",
        model=FAMILIES["mednext"].describe(net),
        preprocessing=Preprocessing(),
        inference=Inference(patch=(16, 16, 16), mirror_axes=(0, 1, 2)),
        labels={"background": 0, "one": 1, "two": 2},
    )
    return LoadedModel(net, task, Source(format="random", file="none", sha256="0" * 64))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model for OpenVINO in FP32; read only."""

    def make(folder: Path) -> None:
        mx.export(tiny_model, target="openvino", out=folder / "tiny.openvino-fp32")

    return once(tmp_path_factory, "tiny-bundle", make) / "tiny.openvino-fp32"
