"""Targets `trt` and `trt-rtx`: the graph that travels, its recipe, deferred bundles, plans, refusals."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

import mednext_edge as mx
from mednext_edge.bundle import Plan, read_manifest, verify
from mednext_edge.data.dataset import Dataset
from mednext_edge.errors import ExportError, TargetUnavailableError, UnknownNameError, UsageError
from mednext_edge.evaluation.report import Fallback, Layers
from mednext_edge.export import tensorrt
from mednext_edge.export.export import export
from mednext_edge.export.targets import TARGETS, BuildOptions
from mednext_edge.fusion import fuse
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.nvidia.inspect import EngineLayer
from mednext_edge.nvidia.providers import PROVIDERS
from mednext_edge.nvidia.recipe import BuildRecipe
from mednext_edge.nvidia.trtexec import command
from mednext_edge.quantize.calibration import CalibrationSet
from mednext_edge.quantize.kinds import layers as layers_of
from mednext_edge.runtime.onnx_session import OnnxSession
from mednext_edge.runtime.session import Array
from mednext_edge.runtime.tensorrt_session import TensorRtSession
from tests.nvidia.fake_tensorrt import read_plan

from .conftest import PATCH, Bundles, build_options
from .gpu import VERSION, with_gpu, without_gpu

SMALL = (16, 16, 16)


@pytest.fixture
def rtx() -> ModuleType:
    """TensorRT for RTX as it is installed."""
    build_options("trt-rtx")
    return PROVIDERS["tensorrt-rtx"].load()


@pytest.fixture(scope="module")
def every_kind(model: LoadedModel, images: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deferred INT8 bundle with the convolutions quantised that are left out otherwise."""
    out = tmp_path_factory.mktemp("kinds") / "bundle"
    return export(
        model,
        target="trt",
        precision="int8",
        calibration=images,
        patch=PATCH,
        out=out,
        int8_layers=("depthwise", "transposed"),
        build=BuildOptions(defer=True),
    )


def graph_of(bundle: Path) -> onnx.GraphProto:
    graph: onnx.GraphProto = onnx.load(bundle / "model.onnx").graph
    return graph


def recipe_of(bundle: Path) -> BuildRecipe:
    return BuildRecipe.model_validate_json((bundle / "build.json").read_bytes())


def quantized(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The convolutions whose image and weights are both dequantised."""
    restored = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose") and {*node.input[:2]} <= restored:
            yield node


# The graph --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["pointwise alone", "the others"])
def test_int8_is_symmetric_signed_and_per_channel(bundles: Bundles, every_kind: Path, which: str) -> None:
    graph = graph_of(every_kind if which == "the others" else bundles("trt", "int8"))
    values = {init.name: onnx.numpy_helper.to_array(init) for init in graph.initializer}
    weights = 0
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        assert len(node.input) == 3, "without a zero point the integers would be unsigned"
        source, scale, zero = node.input[0], values[node.input[1]], values[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
        assert scale.dtype == np.float16
        assert (scale >= np.finfo(np.float16).smallest_normal).all()
        assert np.isfinite(scale).all()
        attributes = {a.name: a.i for a in node.attribute}
        if source in values:  # weights lie in the file as integers
            weights += 1
            assert node.op_type == "DequantizeLinear"
            assert values[source].dtype == np.int8
            assert values[source].min() >= -127
            assert attributes == {"axis": 0}
            assert scale.shape == zero.shape == values[source].shape[:1]
        else:
            assert scale.shape == zero.shape == ()
    assert weights == len(list(quantized(graph))) > 0


def test_only_the_chosen_kinds_are_quantized(bundles: Bundles, every_kind: Path, model: LoadedModel) -> None:
    names: dict[str, set[str]] = {}
    for layer in layers_of(fuse(model, optional=("parity",)).net):
        if layer.quantizable:  # transposed convolutions of 1x1x1 have no parity form
            names.setdefault(layer.kind, set()).update(name.removesuffix(".weight") for name in layer.weights)
    assert {node.name for node in quantized(graph_of(bundles("trt", "int8")))} == names["pointwise"]
    others = names["depthwise"] | names["transposed"]
    assert {node.name for node in quantized(graph_of(every_kind))} == others
    assert len(names["transposed"]) == 2 * 8


def test_transposed_int8_is_what_switches_the_parity_form_on(bundles: Bundles, every_kind: Path) -> None:
    assert "parity" in read_manifest(every_kind).rewrites
    assert "parity" not in read_manifest(bundles("trt", "int8")).rewrites

    def transposed(bundle: Path) -> int:
        return sum(node.op_type == "ConvTranspose" for node in graph_of(bundle).node)

    assert transposed(bundles("trt", "int8")) == 4  # of two up blocks the depthwise and the residual one
    assert transposed(every_kind) == 2


def test_every_kind_still_gives_the_answer_of_the_network(
    every_kind: Path, x: Array, expected: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
) -> None:
    with TARGETS["trt"].stand_in(every_kind, verify(every_kind)) as session:
        found = session.run(x)
    cosine = float((found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected))
    assert cosine > 0.98
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.9


def test_convolutions_are_float16_and_statistics_float32(bundles: Bundles) -> None:
    for precision in ("fp16", "int8"):
        graph = onnx.shape_inference.infer_shapes(onnx.load(bundles("trt", precision) / "model.onnx")).graph
        types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
        types |= {init.name: init.data_type for init in graph.initializer}
        seen = Counter(node.op_type for node in graph.node)
        assert (seen["Gelu"], seen["InstanceNormalization"]) == (9, 9)
        for node in graph.node:
            if node.op_type in ("Conv", "ConvTranspose", "Gelu"):
                assert {types[name] for name in node.input} == {onnx.TensorProto.FLOAT16}, node.name
            elif node.op_type == "InstanceNormalization":
                assert {types[name] for name in node.input} == {onnx.TensorProto.FLOAT}, node.name


def test_both_targets_write_one_graph(bundles: Bundles) -> None:
    for precision in ("fp16", "int8"):
        ours, theirs = (bundles(target, precision) / "model.onnx" for target in ("trt", "trt-rtx"))
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "every kind"])
def test_the_real_parser_takes_it(rtx: Any, bundles: Bundles, every_kind: Path, precision: str) -> None:
    folder = every_kind if precision == "every kind" else bundles("trt", precision)
    logger = rtx.Logger(rtx.Logger.ERROR)
    builder = rtx.Builder(logger)
    network = builder.create_network(0)
    parser = rtx.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(folder / "model.onnx"))
    assert [parser.get_error(i).desc() for i in range(parser.num_errors)] == []
    assert parsed
    assert [network.get_input(i).name for i in range(network.num_inputs)] == ["image"]
    assert tuple(network.get_input(0).shape) == (1, 1, *PATCH)
    assert tuple(network.get_output(0).shape) == (1, 3, *PATCH)
    assert (network.get_input(0).dtype, network.get_output(0).dtype) == (rtx.float32, rtx.float32)


# The recipe -------------------------------------------------------------------------------------------------------


def test_a_bundle_without_gpu_is_deferred(bundles: Bundles) -> None:
    folder = bundles("trt", "int8")
    manifest = verify(folder)
    assert manifest.engine.status == "deferred"
    assert (manifest.engine.file, manifest.engine.plans, manifest.engine.arch) == ("model.onnx", (), None)
    with pytest.raises(
        TargetUnavailableError, match=r"not built yet; run `mednext-edge build .*trt-int8` on the device"
    ):
        mx.open(folder)


def test_without_a_gpu_nobody_has_to_ask_for_it(
    shallow: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gpu(monkeypatch)
    out = export(shallow, target="trt", out=tmp_path / "bundle", patch=(4, 4, 4), build=BuildOptions(archs=("sm_87",)))
    manifest = verify(out)
    assert (manifest.engine.status, manifest.engine.arch, manifest.precision) == ("deferred", "8.7", "fp16")
    assert recipe_of(out).archs == ("8.7",)


def test_the_recipe_holds_what_was_asked_for(shallow: LoadedModel, tmp_path: Path) -> None:
    build = BuildOptions(
        archs=("87",),
        defer=True,
        range=((2, 2, 4), (8, 8, 8)),
        workspace_mib=512,
        optimization_level=5,
        hardware_compatibility="ampere+",
        version_compatible=True,
    )
    out = export(shallow, target="trt", out=tmp_path / "bundle", patch=(4, 4, 4), build=build)
    recipe = recipe_of(out)
    assert recipe == BuildRecipe(
        provider="tensorrt",
        archs=("8.7",),
        input="image",
        channels=1,
        min=(2, 2, 4),
        opt=(4, 4, 4),
        max=(8, 8, 8),
        workspace_mib=512,
        optimization_level=5,
        hardware_compatibility="ampere+",
        version_compatible=True,
    )
    assert BuildRecipe.model_validate_json(recipe.model_dump_json()) == recipe
    line = (out / "build.txt").read_text()
    assert line == command(recipe) + "\n"
    assert line.startswith("trtexec --onnx=model.onnx --saveEngine=model.plan --stronglyTyped ")
    assert "--minShapes=image:1x1x2x2x4 --optShapes=image:1x1x4x4x4 --maxShapes=image:1x1x8x8x8" in line
    assert "--memPoolSize=workspace:512" in line
    assert read_manifest(out).input.shape == (1, 1, None, None, None)
    dims = graph_of(out).input[0].type.tensor_type.shape.dim[2:]
    assert all(not dim.HasField("dim_value") for dim in dims)


def test_the_usual_recipe_is_of_one_patch(bundles: Bundles) -> None:
    for target, provider, tool in (("trt", "tensorrt", "trtexec "), ("trt-rtx", "tensorrt-rtx", "tensorrt_rtx ")):
        recipe = recipe_of(bundles(target, "int8"))
        assert (recipe.provider, recipe.static, recipe.opt) == (provider, True, PATCH)
        assert (bundles(target, "int8") / "build.txt").read_text().startswith(tool)


# float16 ----------------------------------------------------------------------------------------------------------


def patches(size: tuple[int, ...], scale: float) -> CalibrationSet:
    drawn = np.random.default_rng(0).normal(0, scale, (1, 1, *size)).astype(np.float32)
    return CalibrationSet((drawn,), ("a",), "0" * 64, 0)


def test_a_network_that_float16_cannot_hold_is_refused(shallow: LoadedModel, tmp_path: Path) -> None:
    loud = patches((4, 4, 4), 60_000)
    arguments: dict[str, Any] = {"target": "trt", "patch": (4, 4, 4), "calibration": loud, "out": tmp_path / "bundle"}
    for precision in ("fp16", "int8"):
        kinds = ("thin",) if precision == "int8" else ()
        with pytest.raises(ExportError, match=r"float16 ends at 65504.*--precision fp32"):
            export(shallow, precision=precision, int8_layers=kinds, build=BuildOptions(defer=True), **arguments)
        assert not list(tmp_path.iterdir())
    assert verify(export(shallow, precision="fp32", build=BuildOptions(defer=True), **arguments)).precision == "fp32"


def test_calibration_patches_may_be_smaller_than_the_engines(shallow: LoadedModel, tmp_path: Path) -> None:
    out = export(
        shallow,
        target="trt",
        precision="int8",
        patch=(8, 8, 8),
        calibration=patches((4, 4, 4), 1),
        out=tmp_path / "bundle",
        int8_layers=("thin", "strided"),
        build=BuildOptions(defer=True),
    )
    with TARGETS["trt"].stand_in(out, verify(out)) as session:
        assert session.patch == (8, 8, 8)
        assert session.run(np.zeros((1, 1, 8, 8, 8), np.float32)).shape == (1, 3, 8, 8, 8)


def test_a_network_without_convolutions_of_the_kind(shallow: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="has no layer of the kinds dense to quantise"):
        export(
            shallow,
            target="trt",
            precision="int8",
            patch=(4, 4, 4),
            calibration=patches((4, 4, 4), 1),
            out=tmp_path / "bundle",
            int8_layers=("dense",),
            build=BuildOptions(defer=True),
        )
    assert not list(tmp_path.iterdir())


# With a GPU -------------------------------------------------------------------------------------------------------


def test_with_a_gpu_it_is_built_here_and_now(
    model: LoadedModel, images: Dataset, x: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu(monkeypatch, tmp_path)
    told: list[str] = []
    out = export(
        model,
        target="trt",
        precision="int8",
        calibration=images,
        patch=PATCH,
        out=tmp_path / "bundle",
        progress=lambda what, done, total: told.append(what),
    )
    engine = verify(out).engine
    assert (engine.status, engine.provider, engine.provider_version) == ("built", "tensorrt", VERSION)
    assert (engine.file, engine.arch, engine.plans) == ("model.plan", "8.6", (Plan(arch="8.6", file="model.plan"),))
    assert {entry.path for entry in verify(out).files} == {"model.onnx", "build.json", "build.txt", "model.plan"}
    plan = read_plan(out / "model.plan")
    assert plan.min == plan.max == [1, 1, *PATCH]
    assert {"calibrate", "build for 8.6 · Building engine"} <= set(told)
    with mx.open(out) as session, OnnxSession(out / "model.onnx", model.task, "int8") as graph:
        assert isinstance(session, TensorRtSession)
        np.testing.assert_array_equal(session.run(x).argmax(1), graph.run(x).argmax(1))
        layers = TARGETS["trt"].layers(session, out / engine.file)
        assert layers.reformats is not None
        assert sum(layers.counts_by_precision.values()) == len(session.layers()) - layers.reformats


def test_a_range_of_patches_is_built_and_run(
    shallow: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu(monkeypatch, tmp_path)
    build = BuildOptions(range=((2, 2, 4), (8, 8, 8)))
    out = export(shallow, target="trt", precision="fp32", patch=(4, 4, 4), out=tmp_path / "bundle", build=build)
    with OnnxSession(out / "model.onnx", shallow.task, "fp32") as graph:
        for size in (None, (2, 2, 4), (8, 6, 8)):
            with mx.open(out, patch=size) as session:
                x = np.random.default_rng(0).normal(size=(1, 1, *(size or (4, 4, 4)))).astype(np.float32)
                np.testing.assert_allclose(session.run(x), graph.run(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match=r"built for \(2, 2, 4\) to \(8, 8, 8\)"):
        mx.open(out, patch=(10, 8, 8))


def test_defer_holds_even_with_a_gpu(shallow: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = with_gpu(monkeypatch, tmp_path)
    build = BuildOptions(defer=True, archs=("8.7",))
    out = export(shallow, target="trt", patch=(4, 4, 4), out=tmp_path / "bundle", build=build)
    assert verify(out).engine.status == "deferred"
    assert module._builds == []


def test_another_architecture_than_this_gpus_is_refused_at_once(
    shallow: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu(monkeypatch, tmp_path)
    monkeypatch.setattr(tensorrt, "_write_graph", never)
    with pytest.raises(UsageError, match=r"found compute capability 8\.7 .*--defer-build, or give --gpu-arch 8\.6"):
        export(shallow, target="trt", out=tmp_path / "bundle", build=BuildOptions(archs=("8.7",)))
    assert not (tmp_path / "bundle").exists()


def test_rtx_bundle_runs_the_plan_of_this_gpu(
    model: LoadedModel, x: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu(monkeypatch, tmp_path, capability="8.9", rtx=True)
    out = export(model, target="trt-rtx", precision="fp32", patch=PATCH, out=tmp_path / "bundle")
    engine = verify(out).engine
    assert (engine.arch, engine.file) == ("8.6,8.9,12.0", "model.sm86.plan")
    assert [read_plan(out / plan.file).arch for plan in engine.plans] == ["8.6", "8.9", "12.0"]
    with mx.open(out) as session, OnnxSession(out / "model.onnx", model.task, "fp32") as graph:
        assert session.provider == f"tensorrt-rtx {VERSION}"
        np.testing.assert_allclose(session.run(x), graph.run(x), rtol=1e-4, atol=1e-5)


def test_a_builder_that_fails_leaves_nothing(
    shallow: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = with_gpu(monkeypatch, tmp_path)
    monkeypatch.setattr(module.Builder, "build_serialized_network", lambda *_: None)
    with pytest.raises(ExportError, match=r"TensorRT 10\.3\.0 cannot build model\.onnx"):
        export(shallow, target="trt", patch=(4, 4, 4), out=tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


# TensorRT for RTX, as it is ---------------------------------------------------------------------------------------


def test_rtx_builds_a_plan_for_every_architecture(rtx: Any, shallow: LoadedModel, tmp_path: Path) -> None:
    build = BuildOptions(archs=("sm_86", "120", "8.6"))
    out = export(shallow, target="trt-rtx", patch=(4, 4, 4), out=tmp_path / "bundle", build=build)
    engine = verify(out).engine
    assert recipe_of(out).archs == ("8.6", "12.0")
    assert (engine.arch, engine.provider_version) == ("8.6,12.0", rtx.__version__)
    assert [plan.file for plan in engine.plans] == ["model.sm86.plan", "model.sm120.plan"]
    contents = [(out / plan.file).read_bytes() for plan in engine.plans]
    assert all(len(content) > 10_000 for content in contents)
    assert contents[0] != contents[1]


def test_rtx_builds_a_range_of_patches(rtx: Any, shallow: LoadedModel, tmp_path: Path) -> None:
    build = BuildOptions(archs=("8.6",), range=((2, 2, 4), (8, 8, 8)))
    out = export(shallow, target="trt-rtx", patch=(4, 4, 4), out=tmp_path / "bundle", build=build)
    assert (out / "model.sm86.plan").stat().st_size > 10_000
    assert read_manifest(out).input.shape == (1, 1, None, None, None)


# Refusals ---------------------------------------------------------------------------------------------------------


def never(*_: object, **__: object) -> None:
    raise AssertionError("work was begun")


REFUSED: list[tuple[str, dict[str, Any], BuildOptions, type[Exception], str]] = [
    ("trt-rtx", {}, BuildOptions(archs=("8.7",)), UsageError, "8.7.*for Jetson Orin use `--target trt`"),
    ("trt-rtx", {}, BuildOptions(archs=("sm_90a",)), UsageError, "9.0.*for Hopper use `--target trt`"),
    ("trt-rtx", {}, BuildOptions(archs=("8.6", "5.2")), UsageError, r"5\.2; it supports 7\.5, 8\.0, 8\.6"),
    ("trt-rtx", {}, BuildOptions(archs=("ampere",)), UsageError, "`ampere` is no GPU architecture"),
    ("trt-rtx", {}, BuildOptions(hardware_compatibility="ampere+"), UsageError, "found --hardware-compatibility"),
    ("trt-rtx", {}, BuildOptions(version_compatible=True), UsageError, "--version-compatible"),
    ("trt-rtx", {}, BuildOptions(defer=True), UsageError, "found --defer-build"),
    ("trt-rtx", {"dynamic": True}, BuildOptions(), UsageError, "give --min-patch and --max-patch"),
    ("trt", {"dynamic": True}, BuildOptions(), UsageError, "give --min-patch and --max-patch"),
    ("trt", {}, BuildOptions(archs=("8.6", "8.9")), UsageError, "For several use --target trt-rtx"),
    ("trt", {}, BuildOptions(archs=("orin",)), UsageError, "`orin` is no GPU architecture"),
    ("trt", {"int8_layers": ("pointwise",)}, BuildOptions(), UsageError, "found --int8-layers with precision fp16"),
    ("trt", {"precision": "int8", "int8_layers": ("depthwize",)}, BuildOptions(), UnknownNameError, "`depthwise`"),
    ("openvino", {"int8_layers": ("norm",)}, BuildOptions(), UsageError, "found --int8-layers with precision fp32"),
    ("trt", {"precision": "int8"}, BuildOptions(), UsageError, "INT8 needs images to calibrate on"),
    ("trt", {"precision": "bf16"}, BuildOptions(), UnknownNameError, "precision of target trt"),
    ("trt", {}, BuildOptions(range=((8, 8, 8), (4, 8, 8))), UsageError, "--min-patch <= --patch <= --max-patch"),
    ("trt", {"patch": (16,) * 3}, BuildOptions(range=((4, 8, 8), (8,) * 3)), UsageError, "<= --max-patch on every"),
    ("trt", {}, BuildOptions(range=((4, 4, 7), (8, 8, 8))), UsageError, "multiple of 4"),
    ("openvino", {}, BuildOptions(archs=("8.6",)), UsageError, "they belong to trt, trt-rtx"),
    ("onnx", {}, BuildOptions(defer=True), UsageError, "options for NVIDIA's builders with target onnx"),
    ("onnx", {}, BuildOptions(range=((8,) * 3, (8,) * 3)), UsageError, "with target onnx"),
]


@pytest.mark.parametrize(("target", "arguments", "build", "kind", "words"), REFUSED)
def test_what_cannot_be_followed_is_refused_before_any_work(
    model: LoadedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    arguments: dict[str, Any],
    build: BuildOptions,
    kind: type[Exception],
    words: str,
) -> None:
    build_options(target)  # skips without the package that knows the architectures
    monkeypatch.setattr("mednext_edge.export.export.fuse", never)
    with pytest.raises(kind, match=words):
        export(model, target=target, out=tmp_path / "bundle", build=build, **{"patch": (8, 8, 8)} | arguments)
    assert not list(tmp_path.iterdir())


def test_rtx_without_its_package_says_what_to_install(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PROVIDERS["tensorrt-rtx"].modules:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("mednext_edge.export.export.fuse", never)
    with pytest.raises(TargetUnavailableError, match="pip install tensorrt-rtx"):
        export(model, target="trt-rtx", out=tmp_path / "bundle")


# What the engine made of the graph --------------------------------------------------------------------------------


def test_layers_without_a_gpu_are_those_of_the_graph(bundles: Bundles) -> None:
    folder = bundles("trt", "int8")
    with TARGETS["trt"].stand_in(folder, verify(folder)) as session:
        layers = TARGETS["trt"].layers(session, folder / "model.onnx")
    assert layers.reformats is None
    assert layers.counts_by_precision["int8"] == len(list(quantized(graph_of(folder)))) == 4
    assert set(layers.counts_by_precision) == {"int8", "fp16"}
    reasons = {fallback.name: fallback.reason for fallback in layers.fallbacks}
    assert reasons["up_0.conv1"].startswith("a transposed convolution")
    assert reasons["enc_block_0.0.conv1"].startswith("a depthwise convolution")
    assert reasons["stem"].startswith("a convolution of little work")


def test_an_engine_is_asked_what_it_made_of_the_graph() -> None:
    graph = Layers(
        counts_by_precision={"int8": 2, "fp16": 1},
        fallbacks=(Fallback(name="up.conv1", asked="int8", got="fp16", reason="transposed"),),
    )
    found = (
        EngineLayer("a", "convolution", "int8", ("enc.conv2",)),
        EngineLayer("b", "convolution", "fp16", ("enc.conv3", "gelu")),
        EngineLayer("c", "convolution", "fp16", ("up.conv1",)),
        EngineLayer("d", "reformat", "fp16", ()),
        EngineLayer("e", "pointwise", "fp32", ("norm",)),
    )
    layers = tensorrt.engine_report(found, "int8", graph)
    assert layers.counts_by_precision == {"int8": 1, "fp16": 2, "fp32": 1}
    assert layers.reformats == 1
    # What the graph left out, and what the engine added to it; a norm in another precision is as it should be.
    assert [(f.name, f.got) for f in layers.fallbacks] == [("up.conv1", "fp16"), ("b", "fp16")]
    assert all(f.reason for f in layers.fallbacks)
