"""OpenVINO computes what the Q/DQ graph says, which ONNX Runtime computes number for number."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import onnx
import openvino as ov
import pytest

from mednext_edge.export.graph import to_onnx
from mednext_edge.quantize.flavour import CPU
from mednext_edge.quantize.kinds import KINDS, layers
from mednext_edge.quantize.observe import open_graph
from mednext_edge.quantize.plan import Plan
from tests.quantize.networks import FLAT, WIDE, collect, fused, noise

CONFIGS = {"3-D": WIDE, "2-D": FLAT, "kernel 5": replace(WIDE, encoder_kernel=5, decoder_kernel=5)}


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def planned(request: pytest.FixtureRequest) -> tuple[onnx.ModelProto, Plan]:
    """A float graph, and every layer of it that can be INT8."""
    config = request.param
    patch = (16,) * config.spatial_dims
    model = fused(config, ("parity",))
    graph = to_onnx(model, patch)
    chosen = {layer.name: layer for layer in layers(model.net) if layer.quantizable}
    return graph, Plan(chosen, collect(graph, chosen.values(), noise(config, patch)), CPU)


def errors(graph: onnx.ModelProto, plan: Plan, alone: str) -> tuple[float, float]:
    """Mean squared difference of OpenVINO from ONNX Runtime, and of INT8 from float, with one layer in INT8."""
    int8 = plan.keeping(set(plan.ranges) - {alone}).apply(graph)
    shape = [dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim]
    x = (np.random.default_rng(5).standard_normal(shape) + 0.5).astype(np.float32)
    expected, plain = (open_graph(model).run(None, {"image": x})[0] for model in (int8, graph))
    model = ov.convert_model(io.BytesIO(int8.SerializeToString()))
    found = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x])[0]
    return float(np.square(found - expected).mean()), float(np.square(plain - expected).mean())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dense"])
def test_every_layer_of_a_kind(kind: str, planned: tuple[onnx.ModelProto, Plan]) -> None:
    """Where processors lack VNNI, oneDNN halves some weights; they must survive it.

    One layer at a time: behind it, a number that lies on the edge of two levels of the next layer may fall on
    either side, which is a whole level for a difference of nothing.
    """
    graph, plan = planned
    for name in (name for name in plan.ranges if plan.layers[name].kind == kind):
        between, quantized = errors(graph, plan, name)
        assert quantized > 1e-7, f"{name} was not quantised"
        assert between < 0.01 * quantized, name
