"""Target `native`: a bundle of our own engine, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mednext_edge as mx
from mednext_edge.bundle import read_manifest, verify
from mednext_edge.data.dataset import Dataset
from mednext_edge.errors import DataError, ExportError, TargetUnavailableError, UsageError
from mednext_edge.export.export import TARGETS, check_network, export
from mednext_edge.export.native import FILE
from mednext_edge.export.tune import Setting, check_tunable
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.runtime.native_file import KEY, PRODUCTS, load_net
from mednext_edge.runtime.native_session import NativeSession
from tests.fusion.networks import MEDNEXT, loaded

from .conftest import PATCH, single


@pytest.fixture(scope="module")
def plain() -> LoadedModel:
    """A network for one channel and without GRN."""
    return single(loaded(replace(MEDNEXT["tiny"], in_channels=1, deep_supervision=True)))


@pytest.fixture(scope="module")
def bundle(plain: LoadedModel, images: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("native") / "bundle"
    return export(plain, target="native", precision="int8", out=out, calibration=images, patch=PATCH)


def test_the_answer_is_that_of_the_network(plain: LoadedModel, bundle: Path) -> None:
    x = np.random.default_rng(1).normal(size=(2, 1, *PATCH)).astype(np.float32)
    with torch.no_grad():
        expected = plain.net(torch.from_numpy(x))[0].numpy()
    with mx.open(bundle) as session:
        assert session.provider.startswith("mednext-edge ")
        found = session.run(x)
    assert found.dtype == np.float32
    assert (found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected) > 0.995
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.95


def test_bundle_is_whole(bundle: Path) -> None:
    manifest = verify(bundle)
    assert (manifest.target, manifest.precision, manifest.engine.provider) == ("native", "int8", "mednext-edge")
    assert {entry.path for entry in manifest.files} == {FILE}
    assert manifest.input.shape == (1, 1, None, None, None)
    with mx.open(bundle) as session:
        found = TARGETS["native"].layers(session, bundle / FILE)
    net = load_net(bundle / FILE)
    shortcuts = sum(block.shortcut is not None for block in net.blocks)
    assert found.counts_by_precision == {"int8": 3 * len(net.blocks) + shortcuts, "fp32": len(net.blocks) + 2}
    assert found.fallbacks == ()


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def float_bundle(request: pytest.FixtureRequest, plain: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("native") / request.param
    return export(plain, target="native", precision=request.param, out=out, patch=PATCH)


def test_float_needs_no_calibration(plain: LoadedModel, float_bundle: Path) -> None:
    manifest = verify(float_bundle)
    bound = {"fp32": 1e-5, "bf16": 2e-2}[manifest.precision]
    x = np.random.default_rng(1).normal(size=(2, 1, *PATCH)).astype(np.float32)
    with torch.no_grad():
        expected = plain.net(torch.from_numpy(x))[0].numpy()
    with mx.open(float_bundle) as session:
        assert session.precision == manifest.precision
        found = session.run(x)
        layers = TARGETS["native"].layers(session, float_bundle / FILE)
    assert np.linalg.norm(found - expected) < bound * np.linalg.norm(expected)
    net = load_net(float_bundle / FILE)
    inner = 3 * len(net.blocks) + sum(block.shortcut is not None for block in net.blocks)
    outer = len(net.blocks) + 2  # norms, stem, head
    counts = {"fp32": inner + outer} if manifest.precision == "fp32" else {"bf16": inner, "fp32": outer}
    assert layers.counts_by_precision == counts
    assert layers.fallbacks == ()


def test_bfloat16_takes_half_the_room(plain: LoadedModel, tmp_path: Path) -> None:
    """Weights of products are stored as such; and none of a float32 file is taken for one."""
    files = {}
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        files[precision] = export(plain, target="native", precision=precision, out=out, patch=PATCH) / FILE
    products = sum(tensor.numel() for name, tensor in load_file(files["fp32"]).items() if name.endswith(PRODUCTS))
    assert abs(files["fp32"].stat().st_size - files["bf16"].stat().st_size - 2 * products) < 1024
    with safe_open(files["bf16"], framework="pt") as opened:
        net = opened.metadata()[KEY]
    save_file(load_file(files["fp32"]), files["bf16"], metadata={KEY: net})
    with pytest.raises(ExportError, match=r"expand.weight is torch.float32; expected torch.bfloat16"):
        load_net(files["bf16"])


def test_it_takes_any_patch(bundle: Path) -> None:
    with mx.open(bundle, patch=(8, 24, 8), threads=1) as session:
        assert session.run(np.zeros((1, 1, 8, 24, 8), np.float32)).shape == (1, 3, 8, 24, 8)
        with pytest.raises(DataError, match="compiled for"):
            session.run(np.zeros((1, 1, *PATCH), np.float32))
    with pytest.raises(UsageError, match="multiples of 4"):
        mx.open(bundle, patch=(8, 24, 9))
    with pytest.raises(TargetUnavailableError, match="runs on the CPU alone"):
        mx.open(bundle, device="GPU")


def broken(bundle: Path, folder: Path, how: str) -> Path:
    """The engine's file, spoilt."""
    file = folder / FILE
    shutil.copy(bundle / FILE, file)
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        net = opened.metadata()[KEY]
    if how == "no safetensors":
        file.write_bytes(b"\x80\x04not a network")
    elif how == "cut short":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "no structure":
        save_file(tensors, file)
    elif how == "another version":
        save_file(tensors, file, metadata={KEY: json.dumps(json.loads(net) | {"version": 2})})
    elif how == "a block too few":
        described = json.loads(net)
        save_file(tensors, file, metadata={KEY: json.dumps(described | {"blocks": described["blocks"][:-1]})})
    elif how == "a tensor missing":
        del tensors["blocks.0.table"]
        save_file(tensors, file, metadata={KEY: net})
    elif how == "another shape":
        tensors["blocks.0.expand.scale"] = tensors["blocks.0.expand.scale"][:-1].clone()
        save_file(tensors, file, metadata={KEY: net})
    return file


@pytest.mark.parametrize(
    "how",
    [
        *("no safetensors", "cut short", "no structure", "another version", "a tensor missing", "another shape"),
        "a block too few",
    ],
)
def test_files_that_hold_no_network(bundle: Path, tmp_path: Path, how: str) -> None:
    file = broken(bundle, tmp_path, how)
    with pytest.raises(ExportError, match=r"holds no network of the native engine .*; export it again"):
        NativeSession(file, read_manifest(bundle).task)


def test_what_it_cannot_do_is_refused_before_the_work(
    model: LoadedModel, plain: LoadedModel, images: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ExportError, match="global response norm"):
        export(model, target="native", out=out, calibration=images, patch=PATCH)
    with pytest.raises(UsageError, match="all of them in INT8"):
        export(plain, target="native", out=out, calibration=images, patch=PATCH, int8_layers=("pointwise",))
    with pytest.raises(UsageError, match="give --calib"):
        export(plain, target="native", out=out, patch=PATCH)
    with pytest.raises(UsageError, match="found --tune with target native"):
        check_tunable(plain, Setting("native", TARGETS["native"], "int8", PATCH))
    assert not out.exists()


def test_sensitivity_is_refused(plain: LoadedModel) -> None:
    with pytest.raises(UsageError, match="a choice of INT8 layers"):
        check_network(plain, "native", chosen=True)
    check_network(plain, "native", chosen=False)
