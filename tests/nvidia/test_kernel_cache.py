"""Compiled kernels between two runs: whose they are, and what is not trusted."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest

from mednext_edge.cache import cache_folder
from mednext_edge.nvidia.kernel_cache import KernelCache

posix = pytest.mark.skipif(os.name == "nt", reason="mode bits")


def test_kept_and_found(tmp_path: Path) -> None:
    cache = KernelCache(b"plan", "1.7.1", "8.6", tmp_path)
    assert cache.load() is None
    cache.save(b"kernels")
    assert cache.load() == KernelCache(b"plan", "1.7.1", "8.6", tmp_path).load() == b"kernels"
    cache.save(b"more kernels")
    assert cache.load() == b"more kernels"
    assert sorted(path.suffix for path in cache.file.parent.iterdir()) == [".bin", ".sha256"]


@pytest.mark.parametrize("other", [(b"plan 2", "1.7.1", "8.6"), (b"plan", "1.8.0", "8.6"), (b"plan", "1.7.1", "8.9")])
def test_of_one_plan_version_and_device(tmp_path: Path, other: tuple[bytes, str, str]) -> None:
    KernelCache(b"plan", "1.7.1", "8.6", tmp_path).save(b"kernels")
    assert KernelCache(*other, tmp_path).load() is None


@posix
def test_the_users_alone(tmp_path: Path) -> None:
    cache = KernelCache(b"plan", "1", "8.6", tmp_path)
    cache.save(b"kernels")
    assert stat.S_IMODE(cache.file.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in cache.file.parent.iterdir()} == {0o600}


def test_damaged_kernels_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = KernelCache(b"plan", "1", "8.6", tmp_path)
    cache.save(b"kernels")
    cache.file.write_bytes(b"kernelz")
    with caplog.at_level(logging.WARNING):
        assert cache.load() is None
    assert "their digest does not match; they are compiled again" in caplog.text
    cache.save(b"kernels")
    cache.seal.unlink()
    assert cache.load() is None


@posix
@pytest.mark.parametrize("which", ["folder", "file"])
def test_what_others_may_write_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture, which: str) -> None:
    cache = KernelCache(b"plan", "1", "8.6", tmp_path)
    cache.save(b"kernels")
    (cache.file if which == "file" else cache.file.parent).chmod(0o777)
    with caplog.at_level(logging.WARNING):
        assert cache.load() is None
    assert "others may write to" in caplog.text
    cache.save(b"kernels")
    assert cache.load() == b"kernels"


@posix
def test_what_belongs_to_others_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = KernelCache(b"plan", "1", "8.6", tmp_path)
    cache.save(b"kernels")
    user = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: user)
    with caplog.at_level(logging.WARNING):
        assert cache.load() is None
    assert "belongs to another user" in caplog.text


def test_a_folder_that_cannot_be_made_costs_only_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = KernelCache(b"plan", "1", "8.6", tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        cache.save(b"kernels")
    assert "the next start compiles again" in caplog.text
    assert cache.load() is None


def test_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MEDNEXT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "mednext-edge"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "mednext-edge"
    monkeypatch.setenv("MEDNEXT_CACHE", str(tmp_path / "named"))
    assert cache_folder() == tmp_path / "named"
