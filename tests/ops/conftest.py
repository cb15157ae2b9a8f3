"""The operators on our CUDA kernels without a GPU: the kernels built for the processor, tensors in main memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mednext_edge.ops import cuda_library, depthwise3d_cuda
from mednext_edge.ops.cuda_library import CudaLibrary
from tests.csrc.host_library import HOST_LIBRARY, build_host_library
from tests.once import once


@pytest.fixture(scope="session")
def host_library(tmp_path_factory: pytest.TempPathFactory) -> CudaLibrary:
    return CudaLibrary(once(tmp_path_factory, "host-library", build_host_library) / HOST_LIBRARY)


@pytest.fixture
def kernels(host_library: CudaLibrary, monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaLibrary]:
    """Every tensor that the kernels can compute on goes to them, wherever it lies; new memory is NaN."""
    monkeypatch.setattr(cuda_library, "library", lambda: host_library)
    monkeypatch.setattr(depthwise3d_cuda, "reaches", lambda device: True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # with it, PyTorch fills what it allocates
    assert torch.empty(5).isnan().all()
    yield host_library
    torch.use_deterministic_algorithms(before)
