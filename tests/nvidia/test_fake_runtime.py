"""The fakes have no name and no argument that the real packages lack, and no other numbers."""

from __future__ import annotations

import enum
import inspect
from types import ModuleType
from typing import Any

import pytest
import torch

from mednext_edge.errors import TargetUnavailableError
from mednext_edge.nvidia.providers import PROVIDERS
from tests.nvidia.fake_runtime import Gpu, add_runtime, cuda_runtime, install_torch_cuda
from tests.nvidia.fake_tensorrt import fake_module

BUILDER = set(vars(fake_module("1.7.1", rtx=True)))
FAKE = add_runtime(fake_module("1.7.1", rtx=True), Gpu(), rtx=True)
CLASSES = [name for name, thing in vars(FAKE).items() if isinstance(thing, type) and name not in BUILDER]
CUDA = cuda_runtime(Gpu())
CUDA_ENUMS = [name for name, thing in vars(CUDA).items() if isinstance(thing, type)]
CUDA_FUNCTIONS = [name for name, thing in vars(CUDA).items() if inspect.isfunction(thing)]
SET_BY_SESSIONS = (
    ("Runtime", "engine_host_code_allowed"),
    ("IRuntimeConfig", "cuda_graph_strategy"),
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
)


@pytest.fixture(scope="module")
def tensorrt() -> ModuleType:
    try:
        return PROVIDERS["tensorrt-rtx"].load()
    except TargetUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def cuda() -> Any:
    return pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")


def public(thing: type) -> list[str]:
    if issubclass(thing, enum.Enum):
        return list(thing.__members__)
    return [name for name in dir(thing) if not name.startswith("_") and not hasattr(tuple, name)]


def test_something_is_compared() -> None:
    assert {"Runtime", "ICudaEngine", "IExecutionContext", "IRuntimeConfig", "IRuntimeCache"} <= set(CLASSES)
    assert len(CUDA_FUNCTIONS) > 15
    assert "cudaError_t" in CUDA_ENUMS


@pytest.mark.parametrize("name", CLASSES)
def test_names(tensorrt: ModuleType, name: str) -> None:
    missing = [member for member in public(getattr(FAKE, name)) if not hasattr(getattr(tensorrt, name), member)]
    assert missing == []


@pytest.mark.parametrize(("name", "attribute"), SET_BY_SESSIONS)
def test_attributes_that_sessions_set(tensorrt: ModuleType, name: str, attribute: str) -> None:
    assert isinstance(inspect.getattr_static(getattr(tensorrt, name), attribute), property)


@pytest.mark.parametrize("name", CLASSES)
def test_arguments(tensorrt: ModuleType, name: str) -> None:
    fake = getattr(FAKE, name)
    methods = [m for m in public(fake) if inspect.isfunction(inspect.getattr_static(fake, m, None))]
    for method in methods:
        documented = getattr(getattr(tensorrt, name), method).__doc__
        for argument in list(inspect.signature(getattr(fake, method)).parameters)[1:]:
            assert f"{argument}: " in documented, f"{name}.{method} has no argument {argument}"


def test_tensorrt_has_no_kernels_to_compile() -> None:
    module = add_runtime(fake_module("10.3.0"), Gpu(), rtx=False)
    assert not hasattr(module, "CudaGraphStrategy")
    assert not hasattr(module.ICudaEngine, "create_runtime_config")


@pytest.mark.parametrize("name", CUDA_FUNCTIONS)
def test_functions_of_cuda(cuda: Any, name: str) -> None:
    documented = (getattr(cuda, name).__doc__ or "").strip().splitlines()[0]
    assert documented.startswith(f"{name}(")
    inside = documented[len(name) + 1 : documented.rindex(")")]
    stated = [argument for argument in inside.split(",") if argument.strip()]
    assert CUDA.arity[name] == len(stated)


@pytest.mark.parametrize("name", CUDA_ENUMS)
def test_enumerations_of_cuda(cuda: Any, name: str) -> None:
    for member, value in getattr(CUDA, name).__members__.items():
        assert int(getattr(getattr(cuda, name), member)) == value.value
    assert int(cuda.cudaStreamNonBlocking) == CUDA.cudaStreamNonBlocking


def test_names_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    real = {name: getattr(torch.cuda, name) for name in ("Stream", "CUDAGraph", "graph")}
    install_torch_cuda(monkeypatch, Gpu())
    for name in ("Stream", "CUDAGraph"):
        fake = getattr(torch.cuda, name)
        assert [member for member in public(fake) if not hasattr(real[name], member)] == []
    stated = inspect.signature(real["graph"].__init__).parameters
    assert {"stream", "capture_error_mode"} <= set(stated)
