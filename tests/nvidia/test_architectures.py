"""GPU architectures: spelling, what is supported, and the advice for those that are not."""

from __future__ import annotations

from types import ModuleType

import pytest

from mednext_edge.errors import TargetUnavailableError, UsageError
from mednext_edge.nvidia.architectures import ON_DEVICE, PORTABLE, check_archs, member, normalize, supported
from mednext_edge.nvidia.providers import PROVIDERS
from tests.nvidia.fake_tensorrt import fake_module

RTX, TRT = PROVIDERS["tensorrt-rtx"], PROVIDERS["tensorrt"]


@pytest.fixture
def module() -> ModuleType:
    return fake_module("1.7.1", rtx=True)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("8.6", "8.6"),
        ("86", "8.6"),
        ("sm86", "8.6"),
        ("sm_86", "8.6"),
        ("SM_86", "8.6"),
        ("compute_86", "8.6"),
        (" 8.6 ", "8.6"),
        ("12.0", "12.0"),
        ("120", "12.0"),
        ("sm_120", "12.0"),
        ("sm_90a", "9.0"),
        ("sm_120f", "12.0"),
    ],
)
def test_spellings(written: str, meant: str) -> None:
    assert normalize(written) == meant


@pytest.mark.parametrize("wrong", ["", "8", "ampere", "8,6", "8.6.1", "-86", "sm_", "1200", "8.66"])
def test_what_is_no_architecture(wrong: str) -> None:
    with pytest.raises(UsageError, match="expected a compute capability"):
        normalize(wrong)


def test_supported_are_in_the_order_of_their_numbers(module: ModuleType) -> None:
    assert supported(module) == ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


def test_tensorrt_names_none() -> None:
    assert supported(fake_module("10.3.0")) == ()


def test_each_once_in_the_order_given(module: ModuleType) -> None:
    assert check_archs(["sm_120", "8.6", "sm86", "12.0", "75"], module, RTX) == ("12.0", "8.6", "7.5")


def test_none_is_none(module: ModuleType) -> None:
    assert check_archs([], module, RTX) == ()


def test_portable_ones_are_supported(module: ModuleType) -> None:
    assert check_archs(PORTABLE, module, RTX) == PORTABLE


@pytest.mark.parametrize("arch", sorted(ON_DEVICE))
def test_those_of_tensorrt_are_sent_to_the_device(module: ModuleType, arch: str) -> None:
    with pytest.raises(UsageError, match=r"7.5, 8.0, 8.6, 8.9, 12.0, 12.1; .*--target trt. and finish"):
        check_archs([arch], module, RTX)


def test_unknown_ones_get_the_list_alone(module: ModuleType) -> None:
    with pytest.raises(UsageError, match=r"compute capability 6.1; it supports 7.5, .*12.1$"):
        check_archs(["sm_61"], module, RTX)


def test_an_architecture_that_a_later_version_supports_is_taken(module: ModuleType) -> None:
    module.ComputeCapability = type("C", (), {"__members__": {"NONE": 0, "CURRENT": 1, "SM90": 90}})  # type: ignore[attr-defined]
    assert check_archs(["9.0"], module, RTX) == ("9.0",)


def test_tensorrt_builds_for_its_own_device() -> None:
    with pytest.raises(UsageError, match="builds for the GPU it runs on"):
        check_archs(["8.6"], fake_module("10.3.0"), TRT)


def test_members_are_named_as_nvidia_does() -> None:
    assert [member(arch) for arch in ("8.6", "12.0")] == ["SM86", "SM120"]


def test_the_installed_package_supports_the_portable_ones() -> None:
    try:
        module = RTX.load()
    except TargetUnavailableError as error:
        pytest.skip(str(error))
    assert set(PORTABLE) <= set(supported(module))
    assert check_archs(PORTABLE, module, RTX) == PORTABLE
    assert all(hasattr(module.ComputeCapability, member(arch)) for arch in supported(module))
