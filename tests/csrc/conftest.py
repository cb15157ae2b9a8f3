"""The host library, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

import mednext_edge as mx
from benchmarks.edge.library import EdgeLibrary
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.ops.cuda_library import CudaLibrary
from tests.csrc.edge_bundles import fake_library
from tests.csrc.host_library import build_host_library


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> CudaLibrary:
    return CudaLibrary(build_host_library(tmp_path_factory.mktemp("csrc")))


@pytest.fixture(scope="session")
def fake_edge(tmp_path_factory: pytest.TempPathFactory) -> EdgeLibrary:
    """libmednext_edge with a network of one line in place of OpenVINO."""
    return fake_library(tmp_path_factory.mktemp("edge"))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network as a bundle for the real OpenVINO, FP32."""
    return mx.export(tiny_model, target="openvino", precision="fp32", out=tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def csrc() -> Path:
    return Path(__file__).parents[2] / "mednext_edge" / "csrc"
