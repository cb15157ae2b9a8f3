"""The fake has no name and no argument that the real bindings lack."""

from __future__ import annotations

import enum
import inspect
from types import ModuleType
from typing import Any

import pytest

from mednext_edge.errors import TargetUnavailableError
from mednext_edge.nvidia.providers import PROVIDERS
from tests.nvidia.fake_tensorrt import fake_module

FAKE = fake_module("1.7.1", rtx=True)
CLASSES = [name for name, thing in vars(FAKE).items() if isinstance(thing, type)]


@pytest.fixture(scope="module")
def real() -> ModuleType:
    try:
        return PROVIDERS["tensorrt-rtx"].load()
    except TargetUnavailableError as error:
        pytest.skip(str(error))


def public(thing: type) -> list[str]:
    if issubclass(thing, enum.Enum):
        return list(thing.__members__)
    return [name for name in dir(thing) if not name.startswith("_") and not hasattr(bytes, name)]


@pytest.mark.parametrize("name", CLASSES)
def test_names(real: ModuleType, name: str) -> None:
    fake = getattr(FAKE, name)
    assert public(fake), "a class without a name to compare proves nothing"
    assert [member for member in public(fake) if not hasattr(getattr(real, name), member)] == []


@pytest.mark.parametrize("name", CLASSES)
def test_arguments(real: ModuleType, name: str) -> None:
    fake = getattr(FAKE, name)
    methods = [m for m in public(fake) if inspect.isfunction(inspect.getattr_static(fake, m, None))]
    for method in methods:
        documented = getattr(getattr(real, name), method).__doc__.splitlines()[0]
        assert documented.startswith(f"{method}(self")
        for argument in list(inspect.signature(getattr(fake, method)).parameters)[1:]:
            assert f"{argument}:" in documented, f"{name}.{method} has no argument {argument}"


def test_numbers_of_members(real: ModuleType) -> None:
    for name in ("ComputeCapability", "NetworkDefinitionCreationFlag"):
        for member, value in getattr(FAKE, name).__members__.items():
            assert int(getattr(getattr(real, name), member)) == int(value)


@pytest.mark.parametrize("version", ["10.3.0", "11.4.1"])
def test_versions_differ_where_the_real_ones_do(version: str) -> None:
    module: Any = fake_module(version)
    assert not hasattr(module, "ComputeCapability")
    assert not hasattr(module.BuilderFlag, "FP16")
    assert hasattr(module.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY") == (version == "11.4.1")
