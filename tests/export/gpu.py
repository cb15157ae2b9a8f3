"""A machine with a GPU and TensorRT, or with neither, as an export finds it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.nvidia import fake_runtime as fake
from tests.nvidia.fake_runtime import Gpu

VERSION = "10.3.0"


def with_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, capability: str = "8.6", rtx: bool = False, **options: Any
) -> Any:
    """Install a fake GPU and a fake TensorRT, or TensorRT for RTX, that builds and computes; -> the module."""
    monkeypatch.setenv("MEDNEXT_CACHE", str(tmp_path / "cache"))
    gpu = Gpu(capability).install(monkeypatch)
    fake.install_cuda_python(monkeypatch, gpu)
    return fake.install_tensorrt(monkeypatch, gpu, version=VERSION, rtx=rtx, **options)


def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without GPU and TensorRT; TensorRT for RTX is left as it is."""
    Gpu(count=0).install(monkeypatch)
    monkeypatch.setitem(sys.modules, "tensorrt", None)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
