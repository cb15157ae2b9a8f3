"""Every target at every precision: the same answer, the graph that was meant, a complete bundle."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
import torch

import mednext_edge as mx
from mednext_edge.bundle import Gate, Manifest, read_manifest, verify
from mednext_edge.data.dataset import Dataset
from mednext_edge.errors import ExportError, UnknownNameError, UsageError
from mednext_edge.export import onnx as onnx_target
from mednext_edge.export.export import TARGETS, check_patch, export
from mednext_edge.export.graph import INPUT, OPSET, OUTPUT, to_onnx
from mednext_edge.fusion import fuse
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.nvidia.providers import PROVIDERS
from mednext_edge.quantize.calibration import CalibrationSet
from mednext_edge.runtime.openvino_session import OpenVinoSession
from mednext_edge.runtime.session import Array
from mednext_edge.runtime.torch_session import TorchSession

from .conftest import PATCH, Bundles, build_options, session_of

# A target that does not take every network has tests of its own.
TAKES_ALL = {target: entry for target, entry in TARGETS.items() if entry.accepts is None}
ALL = [(target, precision) for target, entry in TAKES_ALL.items() for precision in entry.precisions]
NVIDIA = ("trt", "trt-rtx")
every_bundle = pytest.mark.parametrize(("target", "precision"), ALL)
Exact = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def cosine(a: Exact | Array, b: Exact | Array) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def graph_of(bundle: Path) -> onnx.GraphProto:
    graph: onnx.GraphProto = onnx.load(bundle / "model.onnx").graph
    return graph


def kinds(bundle: Path) -> Counter[str]:
    """Operators of the engine's file by type, constants apart."""
    if (bundle / "model.onnx").exists():
        return Counter(node.op_type for node in graph_of(bundle).node)
    ops = ov.Core().read_model(bundle / "model.xml").get_ops()
    return Counter(op.get_type_name() for op in ops if op.get_type_name() != "Constant")


@every_bundle
def test_the_answer_is_that_of_the_network(
    bundles: Bundles, model: LoadedModel, x: Array, expected: Exact, target: str, precision: str
) -> None:
    folder = bundles(target, precision)
    with session_of(folder) as session, TorchSession.of(model) as plain:
        found, ours = session.run(x), plain.run(x)
        if target == "openvino" and precision == "fp16":
            # A processor with bfloat16 and without float16 computes in that, and the report says so.
            layers = TARGETS[target].layers(session, folder / "model.xml")
            precision = "bf16" if "bf16" in {fallback.got for fallback in layers.fallbacks} else precision
    assert found.dtype == np.float32
    error = np.abs(found - expected).max()
    scale = np.abs(expected).max()
    if precision == "fp32":
        # Another order of summation may err like PyTorch's own; twice that, or the rounding of 16 sums in a row.
        assert error <= max(2 * np.abs(ours - expected).max(), 16 * np.finfo(np.float32).eps * scale)
        assert (found.argmax(1) == expected.argmax(1)).mean() > 0.999
    elif precision in ("fp16", "bf16"):
        # Weights and activations carry 10 (7) bits behind the point; some forty layers add their roundings up.
        assert error <= 40 * (2**-11 if precision == "fp16" else 2**-8) * scale
        assert cosine(found, expected) > 0.9999
    else:
        # 8 bits a tensor, 7 a weight: random weights are the hard case, trained ones lose less.
        assert cosine(found, expected) > 0.995
        assert (found.argmax(1) == expected.argmax(1)).mean() > 0.95


WRITER: dict[str, Callable[[], tuple[str, str]]] = {
    "openvino": lambda: ("openvino", version("openvino")),
    "onnx": lambda: ("onnxruntime", version("onnxruntime")),
    "trt": lambda: ("tensorrt", "not built"),
    "trt-rtx": lambda: ("tensorrt-rtx", PROVIDERS["tensorrt-rtx"].version),
}
ENGINE_FILES = {
    "openvino": {"model.xml", "model.bin"},
    "onnx": {"model.onnx"},
    "trt": {"model.onnx", "build.json", "build.txt"},
    "trt-rtx": {"model.onnx", "build.json", "build.txt", "model.sm86.plan"},
}


@every_bundle
def test_bundle_is_whole(bundles: Bundles, model: LoadedModel, target: str, precision: str) -> None:
    folder = bundles(target, precision)
    manifest = verify(folder)
    assert (manifest.target, manifest.precision) == (target, precision)
    assert manifest.task.model.model_dump_json() == model.task.model.model_dump_json()
    assert manifest.source == model.source
    assert manifest.preprocessing == model.task.preprocessing
    assert manifest.labels == model.task.labels
    assert manifest.inference.patch == manifest.input.patch == PATCH
    # An IR stays open and is compiled for the patch when it is opened; an ONNX graph is bound to it.
    size = (None,) * 3 if TARGETS[target].open_size else PATCH
    assert manifest.input.shape == (1, 1, *size)
    assert manifest.output.shape == (1, 3, *size)
    assert manifest.input.layout == manifest.output.layout == "NCDHW"
    assert manifest.input.dtype == manifest.output.dtype == "float32"
    assert manifest.gate == Gate(status="not_run")
    assert set(manifest.rewrites) >= {"training-parts", "depthwise-bias", "norm-affine", "instance-norm"}
    assert ("parity" in manifest.rewrites) == (target == "openvino")
    assert (manifest.engine.provider, manifest.engine.provider_version) == WRITER[target]()
    engine = ENGINE_FILES[target]
    assert {entry.path for entry in manifest.files} == engine
    assert {f.name for f in folder.iterdir()} == engine | {"manifest.json", "manifest.sha256"}
    assert [f.name for f in folder.parent.iterdir() if f.name.startswith(".")] == []


@pytest.mark.parametrize("precision", TARGETS["onnx"].precisions)
def test_onnx_graph(bundles: Bundles, precision: str) -> None:
    path = bundles("onnx", precision) / "model.onnx"
    onnx.checker.check_model(path, full_check=True)
    proto = onnx.load(path)
    assert {o.domain: o.version for o in proto.opset_import}[""] == OPSET == 20
    graph = proto.graph
    assert [i.name for i in graph.input] == [INPUT] == ["image"]
    assert [o.name for o in graph.output] == [OUTPUT] == ["logits"]
    sizes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in (graph.input[0], graph.output[0])]
    assert sizes == [[1, 1, *PATCH], [1, 3, *PATCH]]
    types = {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    assert types == {onnx.TensorProto.FLOAT}
    # Instance norm stands on the 5-D tensor: 5 blocks, 2 down, 2 up; nothing is reshaped around it.
    found = kinds(path.parent)
    assert found["InstanceNormalization"] == 9
    assert not {"Reshape", "GroupNormalization", "Flatten", "Shape", "Erf"} & set(found)
    assert found["Gelu"] == 9
    assert not [init for init in graph.initializer if init.data_location == onnx.TensorProto.EXTERNAL]


def test_onnx_in_plain_onnx_runtime_is_our_session(bundles: Bundles, x: Array) -> None:
    for precision in TARGETS["onnx"].precisions:
        path = bundles("onnx", precision) / "model.onnx"
        plain = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": x})[0]
        with mx.open(path.parent) as session:
            assert np.array_equal(session.run(x).argmax(1), plain.argmax(1))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_openvino_runs_mvn(bundles: Bundles, precision: str) -> None:
    """Norms reach the plugin as one MVN each, and stay one."""
    folder = bundles("openvino", precision)
    assert kinds(folder)["MVN"] == 9
    with mx.open(folder) as session:
        assert isinstance(session, OpenVinoSession)
        layers = session.layers()
    assert sum(layer.kind == "MVN" for layer in layers) == 9
    # Parities: the depthwise transposed convolutions are gone, the two 1x1x1 residual ones stay.
    assert sum(layer.kind == "Deconvolution" for layer in layers) == 2
    if precision == "fp32":
        assert {layer.precision for layer in layers} == {"fp32"}
    else:
        assert {layer.precision for layer in layers if layer.kind == "Convolution"} == {"int8"}


def test_int8_with_bfloat16(bundles: Bundles, x: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the plugin refuses the graph with bfloat16, the rest computes in FP32 and is named with the reason."""
    folder = bundles("openvino", "int8-bf16")
    assert kinds(folder) == kinds(bundles("openvino", "int8"))
    entry = TARGETS["openvino"]
    with mx.open(folder) as session:
        assert isinstance(session, OpenVinoSession) and not session.refused
        layers = entry.layers(session, folder / "model.xml")
    assert set(layers.counts_by_precision) <= {"int8", "bf16", "fp32"}
    assert len(layers.fallbacks) == layers.counts_by_precision.get("fp32", 0)

    compile_model = ov.Core.compile_model
    hints = []

    def refuse(core: ov.Core, graph: ov.Model, device: str, options: dict[str, Any]) -> ov.CompiledModel:
        hints.append(options["INFERENCE_PRECISION_HINT"])
        if hints[-1] == "bf16":
            raise RuntimeError("Check failed\nNo suitable implementations")
        return compile_model(core, graph, device, options)

    monkeypatch.setattr(ov.Core, "compile_model", refuse)
    with mx.open(folder) as session, mx.open(bundles("openvino", "int8")) as plain:
        assert isinstance(session, OpenVinoSession)
        assert "No suitable implementations" in session.refused
        assert np.array_equal(session.run(x), plain.run(x))
        layers = entry.layers(session, folder / "model.xml")
    assert hints == ["bf16", "f32", "f32"]
    assert layers.fallbacks
    assert {fallback.reason for fallback in layers.fallbacks} == {session.refused}
    assert {(fallback.asked, fallback.got) for fallback in layers.fallbacks} == {("int8-bf16", "fp32")}


def test_openvino_graph_is_folded(bundles: Bundles) -> None:
    """A shape that is computed at run time hides the biases from the quantiser."""
    for precision in TARGETS["openvino"].precisions:
        assert not {"Broadcast", "VariadicSplit"} & set(kinds(bundles("openvino", precision)))


def test_openvino_int8_is_symmetric_before_depthwise_convolutions(bundles: Bundles) -> None:
    """An activation with a zero point sends the depthwise convolution back to FP32 without a word."""
    graph = ov.Core().read_model(bundles("openvino", "int8") / "model.xml")
    seen = 0
    for op in graph.get_ops():
        if op.get_type_name() != "GroupConvolution":
            continue
        source = op.input_value(0).get_node()
        while source.get_type_name() in ("Pad", "Convert"):
            source = source.input_value(0).get_node()
        assert source.get_type_name() == "FakeQuantize", op.get_friendly_name()
        low, high = (source.input_value(i).get_node().get_data().astype(np.float64) for i in (1, 2))
        levels = source.get_attributes()["levels"]
        zero_point = -low * (levels - 1) / (high - low)
        # Signed: half of the range is below zero; unsigned: none of it is.
        wanted = np.where(low < 0, levels // 2, 0)
        np.testing.assert_allclose(zero_point, wanted, atol=1e-3)
        seen += 1
    assert seen == 7 + 2 * 8  # seven depthwise convolutions, and eight parities of two more


def test_openvino_int8_sums_stay_in_float(bundles: Bundles) -> None:
    """The plugin's INT8 sum is not the sum of what was quantised; see `FLOAT_OPERATORS`."""
    graph = ov.Core().read_model(bundles("openvino", "int8") / "model.xml")
    for op in graph.get_ops():
        if op.get_type_name() == "Add":
            sources = [op.input_value(i).get_node().get_type_name() for i in (0, 1)]
            assert "FakeQuantize" not in sources, op.get_friendly_name()


def test_openvino_computes_what_was_quantised(bundles: Bundles, x: Array) -> None:
    """Integer kernels against the same graph with its quantisers simulated in FP32."""
    folder = bundles("openvino", "int8")
    with mx.open(folder) as session:
        integer = session.run(x)
    options = {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": "NO"}
    simulated = ov.Core().compile_model(folder / "model.xml", "CPU", options)([x])[0]
    assert cosine(integer, simulated) > 0.998


def test_int8_graphs_hold_quantisers(bundles: Bundles) -> None:
    assert kinds(bundles("openvino", "int8"))["FakeQuantize"] > 20
    found = kinds(bundles("onnx", "int8"))
    assert found["QuantizeLinear"] > 20
    assert found["DequantizeLinear"] > found["QuantizeLinear"]
    # Zero points of activations and weights alike are zero: TensorRT takes no others.
    graph = graph_of(bundles("onnx", "int8"))
    values = {init.name: onnx.numpy_helper.to_array(init) for init in graph.initializer}
    points = [values[n.input[2]] for n in graph.node if n.op_type == "DequantizeLinear" and len(n.input) > 2]
    assert points
    for point in points:
        assert not point.any()


@every_bundle
def test_nothing_tells_of_the_machine_that_exported(bundles: Bundles, target: str, precision: str) -> None:
    here = (str(Path(mx.__file__).parent).encode(), str(Path(torch.__file__).parent).encode())
    for file in bundles(target, precision).iterdir():
        content = file.read_bytes()
        assert not [path for path in here if path in content], file.name


def test_16_bits_halve_the_file(bundles: Bundles) -> None:
    def size(target: str, precision: str) -> int:
        entry = read_manifest(bundles(target, precision)).files
        return sum(f.size for f in entry if f.path in ("model.bin", "model.onnx"))

    weights = size("openvino", "fp32")
    for precision in ("fp16", "bf16"):
        assert size("openvino", precision) < 0.6 * weights
    assert size("onnx", "fp16") < size("onnx", "fp32")


def test_fp16_keeps_the_statistics_of_norms_in_fp32(shallow: LoadedModel) -> None:
    """An image of 30 000 to 60 000: sums over it, and its squares, are beyond what float16 holds."""
    graph = to_onnx(fuse(shallow), (16, 16, 16), half=True)
    norms = [node for node in graph.graph.node if node.op_type == "InstanceNormalization"]
    assert len(norms) == 5
    casts = {out: node for node in graph.graph.node if node.op_type == "Cast" for out in node.output}
    for norm in norms:
        assert casts[norm.input[0]].attribute[0].i == onnx.TensorProto.FLOAT
    x = np.random.default_rng(0).uniform(30_000, 60_000, (1, 1, 16, 16, 16)).astype(np.float32)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    scaled = x / 4  # the stem multiplies by numbers around one; its output must fit float16 itself
    (found,) = session.run(None, {"image": scaled})
    assert np.isfinite(found).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_grn_in_float16_survives_large_volumes(dims: int) -> None:
    from mednext_edge.models.mednext import global_response_norm

    size = (1, 4, *(256,) * 2) if dims == 2 else (1, 4, *(48,) * 3)
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(size, generator=generator)
    gamma, beta = (torch.randn((1, 4) + (1,) * dims, generator=generator) for _ in range(2))
    exact = global_response_norm(x.half().double(), gamma.half().double(), beta.half().double())
    half = global_response_norm(x.half(), gamma.half(), beta.half())
    assert x.square().sum() > torch.finfo(torch.float16).max
    torch.testing.assert_close(half.double(), exact, rtol=4e-3, atol=2e-2)


@pytest.mark.parametrize("target", TAKES_ALL)
def test_dynamic_patch(shallow: LoadedModel, tmp_path: Path, target: str) -> None:
    build = build_options(target, range=((2, 2, 4), (12, 8, 10))) if target in NVIDIA else None
    out = export(
        shallow,
        target=target,
        precision="fp32",
        out=tmp_path / "bundle",
        patch=(2, 8, 4),
        dynamic=build is None,
        build=build,
    )
    manifest = read_manifest(out)
    assert manifest.input.shape == (1, 1, None, None, None)
    assert manifest.output.shape == (1, 3, None, None, None)
    assert manifest.input.patch == (2, 8, 4)
    rng = np.random.default_rng(0)
    with TorchSession.of(shallow) as plain:
        for size in (None, (4, 6, 10), (12, 2, 4)):
            with session_of(out, patch=size) as session:
                assert session.patch == (size or (2, 8, 4))
                x = rng.normal(size=(1, 1, *session.patch)).astype(np.float32)
                np.testing.assert_allclose(session.run(x), plain.run(x), rtol=1e-3, atol=1e-3)
    found = kinds(out)
    assert found["MVN" if target == "openvino" else "InstanceNormalization"] == 5


def test_dynamic_int8(shallow: LoadedModel, images: Dataset, tmp_path: Path) -> None:
    """Quantised at one size, run at another."""
    out = export(
        shallow,
        target="openvino",
        precision="int8",
        calibration=images,
        out=tmp_path / "b",
        patch=(16,) * 3,
        dynamic=True,
    )
    x = np.random.default_rng(0).normal(size=(1, 1, 20, 12, 16)).astype(np.float32)
    with mx.open(out, patch=(20, 12, 16)) as session, TorchSession.of(shallow) as plain:
        assert cosine(session.run(x), plain.run(x)) > 0.99


@pytest.mark.parametrize("target", TAKES_ALL)
def test_another_patch_is_refused_unless_the_size_is_open(bundles: Bundles, target: str) -> None:
    if TARGETS[target].open_size:
        with mx.open(bundles(target, "fp32"), patch=(8, 8, 8)) as session:
            assert session.patch == (8, 8, 8)
    else:
        with pytest.raises(UsageError, match=r"found the patch \(8, 8, 8\)"):
            mx.open(bundles(target, "fp32"), patch=(8, 8, 8))


@pytest.mark.parametrize("target", TAKES_ALL)
def test_two_dimensions(tmp_path: Path, target: str) -> None:
    from tests.fusion.networks import TINY, loaded

    from .conftest import single

    flat = single(loaded(replace(TINY, spatial_dims=2)))
    out = export(flat, target=target, precision="fp32", out=tmp_path / "flat", build=build_options(target))
    manifest = read_manifest(out)
    assert manifest.input.layout == "NCHW"
    x = np.random.default_rng(0).normal(size=(1, 2, *manifest.input.patch)).astype(np.float32)
    with session_of(out) as session, TorchSession.of(flat) as plain:
        np.testing.assert_allclose(session.run(x), plain.run(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("target", TAKES_ALL)
def test_layer_norm(tmp_path: Path, target: str) -> None:
    from tests.fusion.networks import levels, loaded

    from .conftest import single

    model = single(loaded(replace(levels(1), norm="layer")))
    x = np.random.default_rng(0).normal(size=(1, 2, 4, 4, 4)).astype(np.float32)
    out = export(model, target=target, precision="fp32", out=tmp_path / "bundle", build=build_options(target))
    with session_of(out) as session, TorchSession.of(model) as plain:
        np.testing.assert_allclose(session.run(x), plain.run(x), rtol=1e-3, atol=1e-3)


def test_the_callers_model_is_not_touched(model: LoadedModel, bundles: Bundles) -> None:
    bundles("openvino", "fp32")
    assert model.rewrites == ()
    assert "dummy_tensor" in model.net.state_dict()


@pytest.mark.parametrize(
    ("patch", "nearest"),
    [
        ((15, 16, 16), "(16, 16, 16)"),
        ((16, 17, 3), "(16, 16, 4)"),
        ((4, 4, 4), "(8, 4, 4)"),
        ((0, 8, 8), "(4, 8, 8)"),
        ((-4, 8, 8), "(4, 8, 8)"),
    ],
)
def test_patch_that_does_not_fit(model: LoadedModel, tmp_path: Path, patch: tuple[int, ...], nearest: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"the nearest that fits is {nearest}")):
        export(model, target="onnx", out=tmp_path / "bundle", patch=patch)
    assert not list(tmp_path.iterdir())


def test_patch_with_other_axes(model: LoadedModel) -> None:
    with pytest.raises(UsageError, match="a patch of 2 sides; this network takes 3"):
        check_patch(model, (16, 16))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"target": "opnvino"}, UnknownNameError, r"unknown target `opnvino`. Did you mean `openvino`\?"),
        ({"target": "onnx", "precision": "int9"}, UnknownNameError, r"Did you mean `int8`\?"),
        ({"target": "onnx", "precision": "bf16"}, UnknownNameError, "precision of target onnx `bf16`"),
        ({"target": "onnx", "precision": "int8"}, UsageError, "INT8 needs images to calibrate on"),
    ],
)
def test_wrong_requests(
    model: LoadedModel, tmp_path: Path, arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        export(model, out=tmp_path / "bundle", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("patch", [(8, 8, 6), (8, 8)])
def test_calibration_patches_that_do_not_fit(model: LoadedModel, tmp_path: Path, patch: tuple[int, ...]) -> None:
    drawn = CalibrationSet((np.ones((1, 1, *patch), np.float32),), ("a",), "0" * 64, 0)
    with pytest.raises(UsageError, match=r"found calibration patches of the shapes \[\(1, 1, 8, 8"):
        export(model, target="onnx", precision="int8", out=tmp_path / "b", patch=PATCH, calibration=drawn)
    assert not list(tmp_path.iterdir())


def test_a_taken_folder_is_refused_and_force_replaces_it(shallow: LoadedModel, tmp_path: Path) -> None:
    out = export(shallow, target="onnx", out=tmp_path / "bundle", patch=(4, 4, 4))
    created = (out / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match="add `--force`"):
        export(shallow, target="onnx", out=out, patch=(8, 4, 4))
    assert (out / "manifest.json").read_bytes() == created
    export(shallow, target="onnx", out=out, patch=(8, 4, 4), force=True)
    assert verify(out).input.patch == (8, 4, 4)
    assert [f.name for f in tmp_path.iterdir()] == ["bundle"]


def test_a_failing_converter_leaves_nothing(
    shallow: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("unsupported operator")

    monkeypatch.setattr(ov, "save_model", fail)
    with pytest.raises(ExportError, match="OpenVINO cannot convert this network: unsupported operator"):
        export(shallow, target="openvino", out=tmp_path / "bundle", patch=(4, 4, 4))
    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ExportError, match=r"torch\.onnx cannot export this network: unsupported operator"):
        export(shallow, target="onnx", out=tmp_path / "bundle", patch=(4, 4, 4))
    assert not list(tmp_path.iterdir())


def test_a_graph_that_the_checker_refuses_is_not_published(
    shallow: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise onnx.checker.ValidationError("bad node")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(ExportError, match=r"does not pass onnx\.checker: bad node"):
        export(shallow, target="onnx", out=tmp_path / "bundle", patch=(4, 4, 4))
    assert not list(tmp_path.iterdir())


def test_weights_beyond_the_limit_of_a_protobuf_lie_apart(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, x: Array
) -> None:
    monkeypatch.setattr(onnx_target, "PROTOBUF_LIMIT", 1000)
    out = export(model, target="onnx", out=tmp_path / "bundle", patch=PATCH)
    assert {entry.path for entry in verify(out).files} == {"model.onnx", "model.onnx.data"}
    with mx.open(out) as session, TorchSession.of(model) as plain:
        np.testing.assert_allclose(session.run(x), plain.run(x), rtol=1e-3, atol=1e-3)


def test_check_sees_the_bundle_before_it_is_published(shallow: LoadedModel, tmp_path: Path) -> None:
    def check(folder: Path, manifest: Manifest) -> Gate:
        assert not (tmp_path / "bundle").exists()
        assert (folder / manifest.engine.file).is_file()
        (folder / "report.json").write_text("{}")
        return Gate(status="failed", metric="dice", max_drop=0.0, drop=0.5)

    out = export(shallow, target="onnx", out=tmp_path / "bundle", patch=(4, 4, 4), check=check)
    assert out == tmp_path / "bundle"
    manifest = verify(out)
    assert manifest.gate.status == "failed"
    assert {entry.path for entry in manifest.files} == {"model.onnx", "report.json"}


def test_the_package_is_the_verb(shallow: LoadedModel, tmp_path: Path) -> None:
    out = mx.export(shallow, target="onnx", out=tmp_path / "bundle", patch=(4, 4, 4))
    assert verify(out).target == "onnx"


@every_bundle
def test_layers_are_told_by_precision(bundles: Bundles, target: str, precision: str) -> None:
    folder = bundles(target, precision)
    manifest = read_manifest(folder)
    with session_of(folder) as session:
        layers = TARGETS[target].layers(session, folder / manifest.engine.file)
    counted = sum(layers.counts_by_precision.values())
    asked = sum(layers.counts_by_precision.get(part, 0) for part in precision.split("-"))
    assert counted - asked == len(layers.fallbacks)
    assert all(f.asked == precision != f.got and f.reason for f in layers.fallbacks)
    if precision == "int8" and target not in NVIDIA:
        assert layers.counts_by_precision["int8"] >= counted - 4
