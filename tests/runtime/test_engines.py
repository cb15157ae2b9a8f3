"""Every engine behind one call: what it takes, what it answers, what it refuses, and how it is opened."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mednext_edge as mx
from mednext_edge.bundle import BundleWriter, Engine, read_manifest
from mednext_edge.data.volume import Volume
from mednext_edge.errors import (
    DataError,
    ExportError,
    IntegrityError,
    TargetUnavailableError,
    UnknownNameError,
    UsageError,
)
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.runtime.engines import ENGINES, OpenOptions, open_engine
from mednext_edge.runtime.onnx_session import OnnxSession
from mednext_edge.runtime.openvino_session import OpenVinoSession
from mednext_edge.runtime.predictor import Predictor
from mednext_edge.runtime.session import Array, Session
from mednext_edge.runtime.torch_session import TorchSession

KINDS = ("torch", "openvino", "onnx")
Opened = Callable[[str], Session]


@pytest.fixture(scope="module")
def bundles(tiny_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """FP32 bundles of the tiny model, by target; read only."""
    root = tmp_path_factory.mktemp("bundles")
    return {target: mx.export(tiny_model, target=target, out=root / target) for target in KINDS if target != "torch"}


@pytest.fixture(scope="module")
def opened(tiny_model: LoadedModel, bundles: dict[str, Path]) -> Opened:
    """A fresh session of a kind."""
    return lambda kind: mx.open(tiny_model if kind == "torch" else bundles[kind])


def patch(batch: int = 1, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(batch, 1, 16, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_same_call_same_answer(opened: Opened, tiny_model: LoadedModel, kind: str) -> None:
    with torch.no_grad():
        expected = tiny_model.net(torch.from_numpy(patch())).numpy()
    with opened(kind) as session:
        found = session.run(patch())
        assert session.provider.startswith({"onnx": "onnxruntime"}.get(kind, kind) + " ")
        assert session.precision == "fp32"
        assert session.task == tiny_model.task or session.task.model_dump_json() == tiny_model.task.model_dump_json()
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_samples(opened: Opened, kind: str) -> None:
    with opened(kind) as session:
        together = session.run(patch(3))
        apart = np.concatenate([session.run(patch(3)[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_the_callers_own(opened: Opened, kind: str) -> None:
    """An engine's output buffer is not handed out: the next call would overwrite it."""
    with opened(kind) as session:
        first = session.run(patch())
        before = first.copy()
        session.run(patch(seed=1))
    np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize("kind", KINDS)
def test_other_types_and_layouts_are_taken(opened: Opened, kind: str) -> None:
    x = patch()
    with opened(kind) as session:
        expected = session.run(x)
        others: list[Any] = [x.astype(np.float64), np.asfortranarray(x), x[..., ::-1][..., ::-1]]
        for same in others:
            np.testing.assert_allclose(session.run(same), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape", [(16, 16, 16), (1, 16, 16, 16), (1, 2, 16, 16, 16), (1, 1, 16, 16), (1, 1, 1, 8, 8, 8)]
)
def test_shapes_that_are_not_taken(opened: Opened, kind: str, shape: tuple[int, ...]) -> None:
    with (
        opened(kind) as session,
        pytest.raises(DataError, match=r"found an input of shape .*; expected \[N, 1, 3 spatial"),
    ):
        session.run(np.zeros(shape, np.float32))


@pytest.mark.parametrize("kind", ["openvino", "onnx"])
def test_another_patch_than_the_engines(opened: Opened, kind: str) -> None:
    with opened(kind) as session:
        assert session.patch == (16, 16, 16)
        with pytest.raises(DataError, match=r"found a patch of \(16, 16, 32\); this engine was compiled for"):
            session.run(np.zeros((1, 1, 16, 16, 32), np.float32))


def test_torch_takes_any_patch_or_the_one_it_was_opened_for(tiny_model: LoadedModel) -> None:
    with mx.open(tiny_model) as session:
        assert session.patch is None
        assert session.run(np.zeros((1, 1, 8, 4, 12), np.float32)).shape == (1, 3, 8, 4, 12)
    with mx.open(tiny_model, patch=(24, 16, 8)) as session:
        assert session.patch == Predictor(session).patch == (24, 16, 8)
        with pytest.raises(DataError, match="found a patch of"):
            session.run(patch())


@pytest.mark.parametrize("size", [(16, 16), (15, 16, 16), (0, 16, 16)])
def test_a_patch_that_the_network_cannot_take(
    tiny_model: LoadedModel, bundles: dict[str, Path], tmp_path: Path, size: tuple[int, ...]
) -> None:
    with pytest.raises(UsageError, match="expected 3 multiples of 4"):
        mx.open(tiny_model, patch=size)
    with pytest.raises(UsageError, match="found the patch"):
        mx.open(bundles["onnx"], patch=size)
    options = OpenOptions(patch=size)
    manifest = read_manifest(bundles["onnx"])
    anything = manifest.model_copy(
        update={"input": manifest.input.model_copy(update={"shape": (1, 1, None, None, None)})}
    )
    with pytest.raises(UsageError, match="expected 3 multiples of 4"):
        open_engine(bundles["onnx"], anything, options)


@pytest.mark.parametrize("kind", ["openvino", "onnx"])
def test_threads_change_no_label(bundles: dict[str, Path], kind: str) -> None:
    with mx.open(bundles[kind], threads=1) as one, mx.open(bundles[kind], threads=2) as two:
        np.testing.assert_allclose(one.run(patch()), two.run(patch()), rtol=1e-4, atol=1e-5)


def test_torch_threads_are_put_back(tiny_model: LoadedModel) -> None:
    before = torch.get_num_threads()
    with mx.open(tiny_model, threads=1) as session:
        session.run(patch())
    assert torch.get_num_threads() == before


def test_the_callers_network_is_not_touched(tiny_model: LoadedModel) -> None:
    net = copy.deepcopy(tiny_model.net).train()
    model = LoadedModel(net, tiny_model.task, tiny_model.source)
    with TorchSession.of(model) as session:
        session.run(patch())
    assert net.training
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_torch_takes_the_first_output_of_deep_supervision(tiny_model: LoadedModel) -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x + 1, x]

    with TorchSession(Two(), tiny_model.task) as session:
        np.testing.assert_array_equal(session.run(patch()), patch() + 1)


@pytest.mark.parametrize("kind", ["openvino", "onnx"])
def test_devices_that_are_not_here(bundles: dict[str, Path], kind: str) -> None:
    with pytest.raises(TargetUnavailableError, match=r"found no .* `NPU9`"):
        mx.open(bundles[kind], device="NPU9")


@pytest.mark.parametrize(
    ("kind", "content"), [("onnx", b"not a graph"), ("onnx", b""), ("openvino", b"<net/>"), ("openvino", b"")]
)
def test_files_that_the_engine_refuses(tiny_model: LoadedModel, tmp_path: Path, kind: str, content: bytes) -> None:
    file = tmp_path / ("model.onnx" if kind == "onnx" else "model.xml")
    file.write_bytes(content)
    with pytest.raises(ExportError, match="cannot"):
        if kind == "onnx":
            OnnxSession(file, tiny_model.task, "fp32")
        else:
            OpenVinoSession(file, tiny_model.task, "fp32")


def test_onnx_from_memory(bundles: dict[str, Path], tiny_model: LoadedModel) -> None:
    content = (bundles["onnx"] / "model.onnx").read_bytes()
    with OnnxSession(content, tiny_model.task, "fp32") as memory, mx.open(bundles["onnx"]) as file:
        np.testing.assert_array_equal(memory.run(patch()), file.run(patch()))


def test_openvino_computes_fp32_in_fp32(bundles: dict[str, Path]) -> None:
    """Processors with bfloat16 would take it unless told otherwise, and the baseline would be no baseline."""
    with mx.open(bundles["openvino"]) as session:
        assert isinstance(session, OpenVinoSession)
        layers = session.layers()
    assert {layer.kind for layer in layers} >= {"Convolution", "MVN"}
    assert {layer.precision for layer in layers} == {"fp32"}
    assert all(layer.name and layer.kernel for layer in layers)


def test_digests_come_before_the_engine(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundles["onnx"], tmp_path / "copy")
    with (tmp_path / "copy" / "model.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff")

    def never(*_: object) -> Session:
        raise AssertionError("the engine was opened")

    monkeypatch.setitem(ENGINES._entries, "onnx", never)
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        mx.open(tmp_path / "copy")


def test_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a bundle"):
        mx.open(tmp_path / "nothing")
    with pytest.raises(UsageError, match="is not a bundle"):
        mx.open(tmp_path)


def test_engines_that_are_not_built_yet(bundles: dict[str, Path], tmp_path: Path) -> None:
    manifest = read_manifest(bundles["onnx"])
    deferred = Engine(file="model.onnx", provider="later", provider_version="1", status="deferred")
    writer = BundleWriter(tmp_path / "later")
    with writer as folder:
        shutil.copy(bundles["onnx"] / "model.onnx", folder)
        writer.commit(manifest.model_copy(update={"engine": deferred}))
    with pytest.raises(TargetUnavailableError, match="not built yet"):
        mx.open(tmp_path / "later")


def test_unknown_target_of_a_bundle(bundles: dict[str, Path]) -> None:
    manifest = read_manifest(bundles["onnx"]).model_copy(update={"target": "onx"})
    with pytest.raises(UnknownNameError, match=r"unknown engine `onx`. Did you mean `onnx`\?"):
        open_engine(bundles["onnx"], manifest, OpenOptions())


@pytest.mark.parametrize("kind", KINDS)
def test_predict_is_the_predictor(opened: Opened, tmp_path: Path, kind: str) -> None:
    """From a volume or a file, on the image's own grid."""
    import nibabel as nib

    affine = np.diag([1.5, -1.0, 2.0, 1.0])
    array = 100 + np.random.default_rng(0).normal(size=(1, 9, 20, 17)).astype(np.float32)
    nib.save(nib.Nifti1Image(array[0].T, affine), tmp_path / "image.nii.gz")
    with opened(kind) as session:
        labels = mx.predict(session, Volume(array, affine))
        np.testing.assert_array_equal(mx.predict(session, tmp_path / "image.nii.gz"), labels)
        np.testing.assert_array_equal(mx.predict(session, str(tmp_path / "image.nii.gz"), step=0.5), labels)
        mirrored = mx.predict(session, Volume(array, affine), mirror=True, step=1.0)
    assert labels.shape == mirrored.shape == (9, 20, 17)
    assert set(np.unique(labels)) <= {0, 1, 2}
    with opened("torch") as session:
        expected = mx.predict(session, Volume(array, affine))
    assert (labels == expected).mean() > 0.999


def test_predict_without_an_image(opened: Opened, tmp_path: Path) -> None:
    with opened("torch") as session, pytest.raises(DataError, match="no such image"):
        mx.predict(session, tmp_path / "absent.nii.gz")
