"""Finishing a bundle on the device: what is built, what is refused, and that a failure changes nothing."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import mednext_edge as mx
from mednext_edge.bundle import read_manifest, verify
from mednext_edge.checkpoints import load, save
from mednext_edge.errors import (
    DataError,
    ExportError,
    IntegrityError,
    TargetUnavailableError,
    UnknownNameError,
    UsageError,
)
from mednext_edge.evaluation.limits import Limits
from mednext_edge.evaluation.report import Report
from mednext_edge.export import proof
from mednext_edge.export.build import BuildRequest, run_build
from mednext_edge.export.export import export
from mednext_edge.export.job import EngineDeferred, ExportRequest, run_export
from mednext_edge.export.targets import BuildOptions, silent
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.nvidia.recipe import BuildRecipe
from mednext_edge.runtime.onnx_session import OnnxSession
from tests.nvidia.fake_tensorrt import CACHE, MAGIC, IHostMemory, read_plan
from tests.training.blobs import write_blobs

from .conftest import build_options
from .gpu import VERSION, snapshot, with_gpu, without_gpu


@pytest.fixture(scope="module")
def checkpoint(tiny_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save(folder, tiny_model, dtype=torch.float32)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases; fold 0 keeps one of them for validation."""
    return write_blobs(tmp_path_factory.mktemp("data") / "blobs")


@pytest.fixture(scope="module")
def original(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deferred INT8 bundle, validated by what stands in for its engine."""
    out = tmp_path_factory.mktemp("bundles") / "tiny.trt-int8"
    request = ExportRequest(
        checkpoint=str(checkpoint),
        target="trt",
        precision="int8",
        calib=str(data),
        calib_samples=2,
        limits=Limits(mean=1.0),
        out=out,
        build=BuildOptions(defer=True),
    )
    run_export(request, silent)
    return out


@pytest.fixture
def deferred(original: Path, tmp_path: Path) -> Path:
    """The bundle in a folder of its own, so that what is left beside it shows."""
    return shutil.copytree(original, tmp_path / "place" / original.name)


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A fake GPU of compute capability 8.6 with TensorRT 10.3; its module."""
    return with_gpu(monkeypatch, tmp_path)


def build(bundle: Path, **changes: Any) -> Any:
    return run_build(replace(BuildRequest(bundle), **{"limits": Limits(mean=1.0), **changes}), silent)


def image(patch: tuple[int, ...] = (16, 16, 16)) -> Any:
    return np.random.default_rng(7).normal(size=(1, 1, *patch)).astype(np.float32)


def unchanged(bundle: Path, work: Callable[[], object], kind: type[BaseException], words: str = "") -> None:
    """`work` fails, and every byte of the bundle and beside it is as before."""
    before = snapshot(bundle.parent)
    with pytest.raises(kind, match=words):
        work()
    assert snapshot(bundle.parent) == before
    assert [entry.name for entry in bundle.parent.iterdir()] == [bundle.name]


# Deferred on one machine ------------------------------------------------------------------------------------------


def test_the_report_of_a_deferred_bundle_says_what_ran(original: Path) -> None:
    manifest = verify(original)
    report = Report.model_validate_json((original / "report.json").read_text())
    assert manifest.engine.status == "deferred"
    assert manifest.gate.status == "passed"
    assert report.stand_in is not None
    assert report.stand_in.startswith("the engine is not built yet; its own graph ran in onnxruntime")
    assert report.stand_in in (original / "report.md").read_text()
    # Accuracy is the graph's; how long another engine takes on this machine is nobody's business.
    assert report.accuracy is not None
    assert report.accuracy.baseline is not None
    assert report.accuracy.baseline.precision == "fp32"
    assert (report.latency, report.end_to_end, report.peak_memory_mb) == (None, None, None)
    assert report.layers is not None
    assert report.layers.counts_by_precision["int8"] > 0


def test_a_deferral_that_nobody_asked_for_is_an_error_with_a_bundle(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gpu(monkeypatch)
    out = tmp_path / "out"
    request = ExportRequest(checkpoint=str(checkpoint), target="trt", out=out)
    with pytest.raises(EngineDeferred, match=r"run `mednext-edge build out` there; --defer-build says") as caught:
        run_export(request, silent)
    assert caught.value.exit_code == 5
    outcome = caught.value.outcome
    assert (outcome.path, outcome.written) == (out, True)
    assert outcome.manifest == verify(out)
    assert verify(out).engine.status == "deferred"
    asked = replace(request, force=True, build=BuildOptions(defer=True))
    again = run_export(asked, silent)
    assert again.manifest is not None
    assert again.manifest.engine.status == "deferred"


# Finished on another ----------------------------------------------------------------------------------------------


def test_build_finishes_a_deferred_bundle(tensorrt: Any, deferred: Path, data: Path, tiny_model: LoadedModel) -> None:
    graph = (deferred / "model.onnx").read_bytes()
    told: list[tuple[str, int, int]] = []
    request = BuildRequest(deferred, validate=str(data), limits=Limits(mean=1.0))
    outcome = run_build(request, lambda *step: told.append(step))
    manifest = verify(deferred)
    assert outcome.manifest == manifest
    assert outcome.path == deferred
    engine = manifest.engine
    assert (engine.status, engine.provider_version, engine.arch, engine.file) == ("built", VERSION, "8.6", "model.plan")
    assert (deferred / "model.onnx").read_bytes() == graph
    assert read_plan(deferred / "model.plan").onnx == onnx.load_from_string(graph)
    # The report is that of the engine, on this machine.
    report = Report.model_validate_json((deferred / "report.json").read_text())
    assert report == outcome.report
    assert report.stand_in is None
    assert "its own graph" not in (deferred / "report.md").read_text()
    assert report.latency is not None
    assert report.end_to_end is not None
    assert report.accuracy is not None
    assert report.accuracy.baseline is not None
    # Without the checkpoint the graph itself is what the engine is held against.
    assert report.accuracy.baseline.precision == "int8"
    assert report.accuracy.voxel_agreement == 1.0
    assert report.layers is not None
    assert report.layers.reformats is not None
    assert (outcome.gate.status, manifest.gate) == ("passed", outcome.gate.for_manifest())
    assert (deferred / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert ("build for 8.6 · Building engine", 3, 3) in told
    assert {"time the engine"} <= {what for what, _, _ in told}
    x = image()
    with mx.open(deferred) as session, OnnxSession(deferred / "model.onnx", tiny_model.task, "int8") as plain:
        np.testing.assert_array_equal(session.run(x).argmax(1), plain.run(x).argmax(1))


def test_measured_kernels_are_kept_beside_the_bundle(tensorrt: Any, deferred: Path) -> None:
    cache = deferred.with_name("tiny.trt-int8.timing-cache")
    build(deferred)
    first = cache.read_bytes()
    assert first.startswith(CACHE)
    build(deferred)
    assert cache.read_bytes() != first  # the fake counts its builds in it
    assert {entry.name for entry in deferred.parent.iterdir()} == {deferred.name, cache.name}


def test_a_bundle_is_built_from_inside_its_folder(
    tensorrt: Any, deferred: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(deferred)
    build(Path())
    assert verify(deferred).engine.status == "built"
    assert deferred.with_name(f"{deferred.name}.timing-cache").is_file()


def test_without_images_the_gate_of_the_graph_stands(tensorrt: Any, deferred: Path) -> None:
    before = verify(deferred).gate
    outcome = build(deferred)
    assert outcome.gate.status == "not_run"
    assert verify(deferred).gate == before
    assert before.status == "passed"
    assert outcome.report.accuracy is None
    assert outcome.report.latency is not None
    assert not (deferred / "comparison.png").exists()
    assert "comparison" not in (deferred / "report.md").read_text()


def test_the_checkpoint_is_the_baseline_where_it_is_given(
    tensorrt: Any, deferred: Path, checkpoint: Path, data: Path
) -> None:
    outcome = build(deferred, validate=str(data), checkpoint=str(checkpoint))
    assert outcome.report.accuracy.baseline.precision == "fp32"
    assert outcome.report.accuracy.voxel_agreement < 1.0


def test_a_drop_over_the_limit_marks_the_bundle(
    tensorrt: Any, deferred: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = proof.check_gate
    monkeypatch.setattr(proof, "check_gate", lambda *a: real(*a).model_copy(update={"status": "failed", "drop": 0.25}))
    outcome = build(deferred, validate=str(data))
    assert outcome.gate.status == "failed"
    assert (verify(deferred).gate.status, verify(deferred).gate.drop) == ("failed", 0.25)
    assert verify(deferred).engine.status == "built"


def test_a_bundle_is_built_anew_for_another_gpu(
    deferred: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as first:
        with_gpu(first, tmp_path)
        build(deferred)
    with_gpu(monkeypatch, tmp_path, capability="8.7")
    with pytest.raises(TargetUnavailableError, match=r"mednext-edge build .*--gpu-arch 8\.7"):
        mx.open(deferred)
    build(deferred, archs=("sm_87",))
    assert verify(deferred).engine.arch == read_plan(deferred / "model.plan").arch == "8.7"
    assert BuildRecipe.model_validate_json((deferred / "build.json").read_bytes()).archs == ("8.7",)
    with mx.open(deferred) as session:
        assert session.run(image()).shape == (1, 3, 16, 16, 16)


def test_a_recipe_for_another_gpu_needs_a_word(
    tensorrt: Any, tiny_model: LoadedModel, tmp_path: Path, deferred: Path
) -> None:
    bundle = tmp_path / "orin" / "bundle"
    export(tiny_model, target="trt", out=bundle, build=BuildOptions(defer=True, archs=("8.7",)))
    unchanged(bundle, lambda: build(bundle), UsageError, r"found compute capability 8\.7 .*--gpu-arch 8\.6")
    unchanged(bundle, lambda: build(bundle, archs=("8.6", "8.9")), UsageError, "For several use --target trt-rtx")
    assert tensorrt._builds == []
    build(bundle, archs=("86",))
    assert verify(bundle).engine.arch == "8.6"


# Failures leave the bundle as it was ------------------------------------------------------------------------------


def test_a_builder_that_gives_up(tensorrt: Any, deferred: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt.Builder, "build_serialized_network", lambda *_: None)
    unchanged(deferred, lambda: build(deferred), ExportError, r"TensorRT 10\.3\.0 cannot build model\.onnx")


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("stage", ["build for", "time the engine"])
def test_an_end_in_the_middle(tensorrt: Any, deferred: Path, error: type[BaseException], stage: str) -> None:
    def stop(what: str, _: int, __: int) -> None:
        if what.startswith(stage):
            raise error

    before = snapshot(deferred)
    with pytest.raises(error):
        run_build(BuildRequest(deferred), stop)
    assert snapshot(deferred) == before
    left = {entry.name for entry in deferred.parent.iterdir()}
    assert left <= {deferred.name, f"{deferred.name}.timing-cache"}


@pytest.mark.parametrize("operator", ["Neg", "Log"])
def test_an_engine_that_computes_something_else_than_its_graph(
    tensorrt: Any, deferred: Path, monkeypatch: pytest.MonkeyPatch, operator: str
) -> None:
    """Other labels, or no finite logits; the kernels that were measured are true all the same."""
    real = tensorrt.Builder.build_serialized_network

    def wrong(self: Any, network: Any, config: Any) -> Any:
        head, _, content = real(self, network, config).partition(b"\n")
        assert head.startswith(MAGIC)
        model = onnx.load_from_string(content)
        (last,) = (node for node in model.graph.node if "logits" in node.output)
        last.output[0] = "right"
        model.graph.node.append(onnx.helper.make_node(operator, ["right"], ["logits"]))
        return IHostMemory(head + b"\n" + model.SerializeToString())

    monkeypatch.setattr(tensorrt.Builder, "build_serialized_network", wrong)
    before = snapshot(deferred)
    with pytest.raises(ExportError, match=r"the engine and its own graph agree on .* expected 98% and finite logits"):
        build(deferred)
    assert snapshot(deferred) == before


def test_a_checkpoint_that_the_bundle_was_not_exported_from(
    tensorrt: Any, deferred: Path, tiny_model: LoadedModel, tmp_path: Path
) -> None:
    other = replace(tiny_model, net=copy.deepcopy(tiny_model.net))
    with torch.no_grad():
        next(other.net.parameters()).add_(1)
    save(tmp_path / "other", other, dtype=torch.float32)
    found, expected = load(tmp_path / "other").source.sha256[:12], verify(deferred).source.sha256[:12]
    words = f"has SHA-256 {found}; .* was exported from {expected}"
    unchanged(deferred, lambda: build(deferred, checkpoint=str(tmp_path / "other")), UsageError, words)
    assert tensorrt._builds == []


def test_a_bundle_that_has_nothing_to_build(tensorrt: Any, tiny_model: LoadedModel, tmp_path: Path) -> None:
    bundle = tmp_path / "place" / "bundle"
    export(tiny_model, target="onnx", out=bundle)
    words = "has nothing to build; only bundles of the targets trt, trt-rtx have"
    unchanged(bundle, lambda: build(bundle), UsageError, words)


@pytest.mark.parametrize("name", ["model.onnx", "build.json", "report.json"])
def test_a_tampered_bundle_is_not_built(tensorrt: Any, deferred: Path, name: str) -> None:
    content = bytearray((deferred / name).read_bytes())
    content[len(content) // 2] ^= 1
    (deferred / name).write_bytes(content)
    unchanged(deferred, lambda: build(deferred), IntegrityError, name)
    assert tensorrt._builds == []


def test_a_machine_without_gpu(deferred: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_gpu(monkeypatch)
    unchanged(deferred, lambda: build(deferred), TargetUnavailableError, "pip install tensorrt")
    with_gpu(monkeypatch, tmp_path)
    monkeypatch.setattr("mednext_edge.nvidia.devices.devices", lambda: ())
    unchanged(deferred, lambda: build(deferred), TargetUnavailableError, "found no NVIDIA GPU")


def test_images_that_do_not_fit(tensorrt: Any, deferred: Path, data: Path, tmp_path: Path) -> None:
    unchanged(deferred, lambda: build(deferred, validate=str(data / "imagesTr")), DataError, "no validation case")
    other = shutil.copytree(data, tmp_path / "two-channels")
    description = (other / "dataset.json").read_text()
    (other / "dataset.json").write_text(description.replace('"0": "MRI"', '"0": "MRI", "1": "CT"'))
    unchanged(deferred, lambda: build(deferred, validate=str(other)), DataError, "2 channels; this network takes 1")
    assert tensorrt._builds == []


def test_a_metric_that_is_none(tensorrt: Any, deferred: Path) -> None:
    unchanged(deferred, lambda: build(deferred, limits=Limits(metric="dize")), UnknownNameError, "Did you mean `dice`")


# TensorRT for RTX -------------------------------------------------------------------------------------------------


def test_rtx_plans_are_replaced_by_those_of_other_architectures(
    tiny_model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real builder, on a machine without a GPU."""
    options = build_options("trt-rtx")
    without_gpu(monkeypatch)
    bundle = tmp_path / "place" / "bundle"
    export(tiny_model, target="trt-rtx", out=bundle, build=options)
    unchanged(bundle, lambda: build(bundle, archs=("9.0",)), UsageError, "for Hopper use `--target trt`")
    outcome = build(bundle, archs=("sm_75", "12.0"))
    manifest = verify(bundle)
    assert [plan.arch for plan in manifest.engine.plans] == ["7.5", "12.0"]
    assert {f.name for f in bundle.iterdir() if f.suffix == ".plan"} == {"model.sm75.plan", "model.sm120.plan"}
    assert BuildRecipe.model_validate_json((bundle / "build.json").read_bytes()).archs == ("7.5", "12.0")
    assert "--computeCapabilities=75,120" in (bundle / "build.txt").read_text()
    assert outcome.report.stand_in is not None
    assert "did not run here" in outcome.report.stand_in
    assert [f.name for f in bundle.parent.iterdir()] == [bundle.name]  # nothing is measured, nothing to keep
    assert read_manifest(bundle).gate.status == "not_run"
