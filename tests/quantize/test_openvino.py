"""OpenVINO computes what the Q/DQ graph says, which ONNX Runtime computes number for number."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import helper

from mednext_edge.export.graph import to_onnx
from mednext_edge.models.cmunext import CMUNeXtConfig
from mednext_edge.models.mednext2d import MedNeXt2dConfig
from mednext_edge.quantize.flavour import CPU
from mednext_edge.quantize.kinds import KINDS, find, layers
from mednext_edge.quantize.observe import open_graph
from mednext_edge.quantize.plan import Plan
from mednext_edge.quantize.qdq import grouped
from tests.fusion.networks import Config
from tests.quantize.networks import FLAT, WIDE, collect, fused, noise

CONFIGS: dict[str, Config] = {
    "3-D": WIDE,
    "2-D": FLAT,
    "kernel 5": replace(WIDE, encoder_kernel=5, decoder_kernel=5),
    "CMUNeXt": CMUNeXtConfig(widths=(16, 16, 32, 32, 32), depths=(1,) * 5, kernels=(3, 3, 7, 7, 9)),
    "2-D MedNeXt": MedNeXt2dConfig(widths=(16, 16, 32, 32), depths=(1,) * 4),
}


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def planned(request: pytest.FixtureRequest) -> tuple[onnx.ModelProto, Plan]:
    """A float graph, and every layer of it that can be INT8."""
    config = request.param
    patch = (max(16, config.divisor),) * config.spatial_dims
    model = fused(config, ("parity",))
    graph = to_onnx(model, patch)
    chosen = {layer.name: layer for layer in layers(model.net) if layer.quantizable}
    return graph, Plan(chosen, collect(graph, chosen.values(), noise(config, patch)), CPU)


def errors(graph: onnx.ModelProto, plan: Plan, alone: str) -> tuple[float, float]:
    """Mean squared difference of OpenVINO from ONNX Runtime, and of INT8 from float, of one layer's own outputs.

    The other layers are in float: behind a layer in INT8, a number that lies on the edge of two levels of the next one
    may fall on either side, which is a whole level for a difference of nothing.
    """
    outputs = [node.output[0] for node in find(graph.graph, plan.layers[alone])]
    plain, int8 = onnx.ModelProto(), plan.keeping(set(plan.ranges) - {alone}).apply(graph)
    plain.CopyFrom(graph)
    for model in (plain, int8):
        del model.graph.output[:]
        model.graph.output.extend(helper.make_tensor_value_info(o, onnx.TensorProto.FLOAT, None) for o in outputs)
    shape = [dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim]
    x = (np.random.default_rng(5).standard_normal(shape) + 0.5).astype(np.float32)
    expected, exact = (open_graph(model).run(None, {"image": x}) for model in (int8, plain))
    model = ov.convert_model(io.BytesIO(int8.SerializeToString()))
    found = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x])
    between, beside = 0.0, 0.0
    for i, (a, b) in enumerate(zip(expected, exact, strict=True)):
        between += float(np.square(found[i] - a, dtype=np.float64).mean())
        beside += float(np.square(b - a, dtype=np.float64).mean())
    return between, beside


def some(graph: onnx.ModelProto, plan: Plan) -> list[str]:
    """The first, the middle and the last layer of every kind, those in groups apart."""
    sorts: dict[tuple[str, bool], list[str]] = {}
    for name in plan.ranges:
        layer = plan.layers[name]
        sorts.setdefault((layer.kind, grouped(find(graph.graph, layer)[0])), []).append(name)
    return sorted({names[i] for names in sorts.values() for i in (0, len(names) // 2, -1)})


def test_layers(planned: tuple[onnx.ModelProto, Plan]) -> None:
    """Without VNNI, oneDNN halves some weights, and adds products of others in 16 bits: both must lose nothing."""
    graph, plan = planned
    wrong = {}
    for name in some(graph, plan):
        between, quantized = errors(graph, plan, name)
        assert quantized > 0, f"{name} was not quantised"
        if not between < 0.01 * quantized:
            wrong[name] = plan.layers[name].kind, between / quantized
    assert not wrong


def test_every_kind_is_among_the_layers() -> None:
    found = {layer.kind for config in CONFIGS.values() for layer in layers(fused(config, ("parity",)).net)}
    assert found == set(KINDS)
