"""The TensorRT backend of libmednext_edge, compiled and run against a stand-in; not yet run on hardware."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.edge.library import ARGUMENT, BACKEND, EdgeLibrary, Failure, segment_options
from mednext_edge.bundle import Engine
from mednext_edge.data.volume import Volume
from mednext_edge.runtime.predictor import Predictor
from tests.csrc.edge_bundles import (
    HERE,
    FakeNetwork,
    compile_native,
    fake_task,
    one_file,
    runtime_flags,
    write_fake_bundle,
)

FAKE = HERE / "fake_tensorrt"
ENGINE = Engine(file="model.xml", provider="tensorrt", provider_version="10.13.0", arch="8.9")
VOLUME = Volume(np.random.default_rng(0).uniform(0, 4, (1, 20, 9, 17)).astype(np.float32), np.diag([-1.0, 1, 2, 1]))


@pytest.fixture(scope="module")
def library(csrc: Path, tmp_path_factory: pytest.TempPathFactory) -> EdgeLibrary:
    """libmednext_edge built with the headers of the stand-in."""
    folder = tmp_path_factory.mktemp("tensorrt")
    shared = ("-shared", "-fPIC", "-O0", f"-I{FAKE}")
    compile_native([FAKE / "fake_tensorrt.cpp"], folder / "libnvinfer.so.10", *shared)
    sources = [one_file(csrc, folder, tensorrt=True)]
    return EdgeLibrary(compile_native(sources, folder / "libmednext_edge.so", *runtime_flags(csrc), *shared))


@pytest.fixture(autouse=True)
def found(library: EdgeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDNEXT_TENSORRT_LIBRARY", str(library.folder))
    monkeypatch.setenv("MEDNEXT_CUDA_LIBRARY", str(library.folder / "libnvinfer.so.10"))


def opened(library: EdgeLibrary, folder: Path, device: str | None = None) -> Failure:
    with pytest.raises(Failure) as caught, library.open(folder, device=device):
        pass
    return caught.value


def test_another_version_than_the_headers(
    library: EdgeLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First, since the library is looked for again only until it was found."""
    monkeypatch.setenv("FAKE_TENSORRT_VERSION", "100900")
    failure = opened(library, write_fake_bundle(tmp_path / "bundle", fake_task(), target="trt", engine=ENGINE))
    assert failure.status == BACKEND
    assert "is version 100900; this libmednext_edge was built with the headers of 101300" in str(failure)


@pytest.mark.parametrize("device", [None, "cuda:0"])
def test_labels_are_those_of_python(library: EdgeLibrary, tmp_path: Path, device: str | None) -> None:
    task = fake_task(mirror_axes=(0, 2))
    bundle = write_fake_bundle(tmp_path / "bundle", task, target="trt", engine=ENGINE)
    with library.open(bundle, device=device) as model:
        assert model.describe().provider == b"trt 101300"
        labels = model.segment(VOLUME, segment_options(mirror=True))
    np.testing.assert_array_equal(labels, Predictor(FakeNetwork(task), mirror=True).predict(VOLUME))


def test_classes_are_those_of_python(library: EdgeLibrary, tmp_path: Path) -> None:
    task = fake_task(patch=(16, 12), kind="classification")
    with library.open(write_fake_bundle(tmp_path / "bundle", task, target="trt", engine=ENGINE)) as model:
        found = model.classify(VOLUME)
    np.testing.assert_allclose(found, Predictor(FakeNetwork(task)).classify(VOLUME), atol=1e-5)
    odd = write_fake_bundle(tmp_path / "odd", fake_task(patch=(16, 12)), "whole", target="trt", engine=ENGINE)
    assert "does not have the shape that its manifest says" in str(opened(library, odd))


def test_plans_that_do_not_fit(library: EdgeLibrary, tmp_path: Path) -> None:
    other = ENGINE.model_copy(update={"arch": "12.0"})
    failure = opened(library, write_fake_bundle(tmp_path / "arch", fake_task(), target="trt", engine=other))
    assert failure.status == BACKEND
    assert "compute capability 8.9" in str(failure)
    assert "has plans for 12.0" in str(failure)
    broken = write_fake_bundle(tmp_path / "broken", fake_task(), target="trt", engine=ENGINE, prefix="no plan: ")
    failure = opened(library, broken)
    assert failure.status == BACKEND
    assert "the plan is of another version. Run `mednext-edge build" in str(failure)


def test_wrong_requests(library: EdgeLibrary, tmp_path: Path) -> None:
    bundle = write_fake_bundle(tmp_path / "bundle", fake_task(), target="trt", engine=ENGINE)
    for device, status in (("GPU", ARGUMENT), ("cuda:x", ARGUMENT), ("cuda:7", BACKEND)):
        assert opened(library, bundle, device).status == status
    failure = opened(library, write_fake_bundle(tmp_path / "rtx", fake_task(), target="trt-rtx", engine=ENGINE))
    assert failure.status == BACKEND
    assert "headers of TensorRT, for target trt" in str(failure)
