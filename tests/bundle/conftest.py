"""A small bundle to damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mednext_edge.bundle import BundleWriter, Engine, InputSpec, Manifest, OutputSpec
from mednext_edge.models.loaded import Source
from mednext_edge.task import Inference, ModelSpec, Preprocessing

FILES = {"model.xml": b"<net/>", "model.bin": bytes(range(256)) * 5, "report.json": b"{}", "pictures/a.png": b"\x89PNG"}


def make_manifest(name: str = "toy") -> Manifest:
    return Manifest(
        name=name,
        model=ModelSpec(
            family="mednext",
            variant="S",
            kernel_size=3,
            spatial_dims=3,
            in_channels=1,
            classes=2,
            parameters=7,
            config={"channels": 4},
        ),
        source=Source(format="safetensors", file="toy.safetensors", sha256="0" * 64),
        input=InputSpec(shape=(1, 1, None, None, None), patch=(32, 32, 32)),
        output=OutputSpec(shape=(1, 2, None, None, None)),
        preprocessing=Preprocessing(),
        inference=Inference(patch=(32, 32, 32)),
        labels={"background": 0, "thing": 1},
        target="openvino",
        precision="int8",
        engine=Engine(file="model.xml", provider="openvino", provider_version="2026.1"),
    )


def write(out: Path, *, force: bool = False, name: str = "toy") -> Manifest:
    writer = BundleWriter(out, force)
    with writer as folder:
        for path, content in FILES.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(content)
        return writer.commit(make_manifest(name))


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture
def write_bundle() -> Callable[..., Manifest]:
    return write


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write(tmp_path / "toy.bundle")
    return tmp_path / "toy.bundle"
