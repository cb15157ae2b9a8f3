"""The C++ runtime on bundles of the native engine: as Python, and files that hold no network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mednext_edge as mx
from benchmarks.edge.library import BACKEND, EdgeLibrary, Failure
from mednext_edge.bundle import Manifest
from mednext_edge.bundle.update import edit_bundle
from mednext_edge.data.dataset import Case, Dataset
from mednext_edge.data.volume import Volume
from mednext_edge.errors import ExportError
from mednext_edge.export.native import FILE
from mednext_edge.runtime.native_file import KEY, load_net
from tests.csrc.edge_bundles import installed_library
from tests.export.conftest import single
from tests.fusion.networks import MEDNEXT, loaded


def export(out: Path, dims: int, precision: str = "int8") -> Path:
    """A small network with random weights, calibrated on noise."""
    model = single(loaded(replace(MEDNEXT["tiny"], in_channels=1, spatial_dims=dims)))
    rng = np.random.default_rng(0)
    volumes = [Volume(rng.normal(size=(1, 20, 20, 20)).astype(np.float32), np.eye(4)) for _ in range(2)]
    cases = tuple(Case(f"case-{i}", lambda v=volume: v) for i, volume in enumerate(volumes))  # type: ignore[misc]
    images = Dataset("noise", cases, (), model.task.labels, ("MRI",)) if precision == "int8" else None
    patch = (16, 8, 16)[-dims:]
    return mx.export(model, target="native", precision=precision, calibration=images, patch=patch, out=out)


@pytest.fixture(scope="module", params=[2, 3])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("native") / "bundle", request.param)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def float_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("native") / request.param, 3, request.param)


def test_labels_are_those_of_python(bundle: Path) -> None:
    check_labels(bundle)


def test_labels_in_float_are_those_of_python(float_bundle: Path) -> None:
    check_labels(float_bundle)


def check_labels(bundle: Path) -> None:
    volume = Volume(np.random.default_rng(1).normal(size=(1, 19, 17, 23)).astype(np.float32), np.eye(4))
    with EdgeLibrary(installed_library()).open(bundle) as model, mx.open(bundle) as session:
        found, expected = model.segment(volume), mx.predict(session, volume)
    assert len(np.unique(expected)) > 1
    assert (found == expected).mean() > 0.9999


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-64])


def _header(file: Path) -> None:
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


def _again(file: Path, change: Callable[[dict[str, object], dict[str, str]], None]) -> None:
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        metadata = dict(opened.metadata())
    change(tensors, metadata)
    save_file(tensors, file, metadata=metadata)


def _no_structure(file: Path) -> None:
    _again(file, lambda tensors, metadata: metadata.update({KEY: "{}"}))


def _version(file: Path) -> None:
    _again(file, lambda tensors, metadata: metadata.update({KEY: metadata[KEY].replace('"version":1', '"version":2')}))


def _no_compress(file: Path) -> None:
    _again(file, lambda tensors, metadata: tensors.pop("blocks.0.compress.weight"))


def _no_table(file: Path) -> None:
    _again(file, lambda tensors, metadata: tensors.pop("blocks.0.table"))


def _shape(file: Path) -> None:
    def change(tensors: dict[str, object], metadata: dict[str, str]) -> None:
        tensors["blocks.1.expand.scale"] = tensors["blocks.0.expand.scale"].clone()  # type: ignore[attr-defined]

    _again(file, change)


def _order(file: Path) -> None:
    _again(file, lambda tensors, metadata: metadata.update({KEY: metadata[KEY].replace('"down"', '"same"', 1)}))


def _spare(file: Path) -> None:
    def change(tensors: dict[str, object], metadata: dict[str, str]) -> None:
        tensors["blocks.0.spare"] = tensors["blocks.0.table"].clone()  # type: ignore[attr-defined]

    _again(file, change)


def _infinite(file: Path) -> None:
    def change(tensors: dict[str, object], metadata: dict[str, str]) -> None:
        tensors["blocks.0.compress.bias"][0] = float("nan")  # type: ignore[index]

    _again(file, change)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_spare, "its structure does not use the tensor blocks.0.spare"),
        (_infinite, "blocks.0.compress.bias holds numbers that are not finite"),
        (_cut, "data_offsets.1: expected a whole number from"),
        (_header, "header is longer"),
        (_no_structure, "net"),
        (_version, "version"),
        (_no_table, "it has no tensor blocks.0.table"),
        (_shape, r"blocks.1.expand.scale is F32 \[\d+\]; expected F32 \[\d+\]"),
        (_order, "does not fit to what is before it"),
    ],
)
def test_files_that_hold_no_network(bundle: Path, tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    spoilt = spoilt_bundle(bundle, tmp_path / "bundle", spoil)
    with pytest.raises(Failure, match=words) as failure, EdgeLibrary(installed_library()).open(spoilt):
        pass
    assert failure.value.status == BACKEND
    assert "holds no network of the native engine" in str(failure.value)


def _precision(file: Path) -> None:
    def change(tensors: dict[str, object], metadata: dict[str, str]) -> None:
        metadata[KEY] = metadata[KEY].replace('"fp32"', '"fp16"').replace('"bf16"', '"fp16"')

    _again(file, change)


def _other_precision(file: Path) -> None:
    """That of the other float network."""
    other = {"fp32": "bf16", "bf16": "fp32"}

    def change(tensors: dict[str, object], metadata: dict[str, str]) -> None:
        mine = "fp32" if '"fp32"' in metadata[KEY] else "bf16"
        metadata[KEY] = metadata[KEY].replace(f'"{mine}"', f'"{other[mine]}"')

    _again(file, change)


def _infinite_weight(file: Path) -> None:
    def change(tensors: dict[str, object], metadata: dict[str, str]) -> None:
        tensors["blocks.0.expand.weight"][0, 0] = float("inf")  # type: ignore[index]

    _again(file, change)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_precision, "expected fp32 or bf16, or none for INT8"),
        (_other_precision, r"blocks.0.expand.weight is (F32|BF16) \[\d+, \d+\]; expected (F32|BF16)"),
        (_infinite_weight, "blocks.0.expand.weight holds numbers that are not finite"),
        (_no_compress, "it has no tensor blocks.0.compress.weight"),
    ],
)
def test_files_that_hold_no_float_network(
    float_bundle: Path, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoilt = spoilt_bundle(float_bundle, tmp_path / "bundle", spoil)
    with pytest.raises(Failure, match=words) as failure, EdgeLibrary(installed_library()).open(spoilt):
        pass
    assert failure.value.status == BACKEND
    with pytest.raises(ExportError, match="holds no network of the native engine"):
        load_net(spoilt / FILE)


def spoilt_bundle(bundle: Path, out: Path, spoil: Callable[[Path], None]) -> Path:
    """A copy with another engine, and digests that fit."""
    shutil.copytree(bundle, out)

    def edit(folder: Path, manifest: Manifest) -> Manifest:
        spoil(Path(shutil.copy(bundle / FILE, folder / FILE)))
        return manifest

    edit_bundle(out, edit, replaced=[FILE])
    return out
