"""The native libraries, for the processor and with an engine of one line."""

from __future__ import annotations

from pathlib import Path

import pytest

import mednext_edge as mx
from benchmarks.edge.library import EdgeLibrary
from mednext_edge.ops.cuda_library import CudaLibrary
from tests.csrc.edge_bundles import fake_library
from tests.csrc.host_library import HOST_LIBRARY, build_host_library
from tests.once import once


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> CudaLibrary:
    return CudaLibrary(once(tmp_path_factory, "host-library", build_host_library) / HOST_LIBRARY)


@pytest.fixture(scope="session")
def fake_edge(tmp_path_factory: pytest.TempPathFactory) -> EdgeLibrary:
    """libmednext_edge with a network of one line in place of OpenVINO."""
    return fake_library(tmp_path_factory.mktemp("edge"))


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped hippocampus model for OpenVINO in FP32; read only."""

    def make(folder: Path) -> None:
        deploy = mx.fuse(mx.load("demo:hippocampus"))
        mx.export(deploy, target="openvino", precision="fp32", out=folder / "hippocampus.openvino-fp32")

    return once(tmp_path_factory, "demo-bundle", make) / "hippocampus.openvino-fp32"


@pytest.fixture(scope="session")
def csrc() -> Path:
    return Path(__file__).parents[2] / "mednext_edge" / "csrc"
