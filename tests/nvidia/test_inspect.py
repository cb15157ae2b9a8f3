"""Layers out of the inspector's text, in the forms that TensorRT writes.

The two texts beside this file are written after NVIDIA's documentation of versions 10 and 11, not recorded on a GPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mednext_edge.errors import ExportError
from mednext_edge.nvidia.inspect import EngineLayer, engine_layers, parse_layers
from tests.nvidia.fake_tensorrt import LayerInformationFormat, fake_module

HERE = Path(__file__).parent
DETAILED_10 = (HERE / "engine_layers_10.json").read_text(encoding="utf-8")
COMPILED_11 = (HERE / "engine_layers_11.json").read_text(encoding="utf-8")


def short(layers: tuple[EngineLayer, ...]) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(layer.kind, layer.precision, layer.origin) for layer in layers]


def test_layers_of_tensorrt_10() -> None:
    assert short(parse_layers(DETAILED_10)) == [
        ("reformat", "fp32", ()),
        ("convolution", "fp16", ("node_conv3d",)),
        ("convolution", "int8", ("expand", "node_gelu", "node_add")),
        ("convolution", "fp32", ("up",)),
        ("reformat", "fp32", ("node_transpose",)),
    ]


def test_compiled_layers_of_tensorrt_11() -> None:
    assert short(parse_layers(COMPILED_11)) == [
        ("reformat", "fp32", ()),
        ("convolution", "bf16", ("node_conv3d",)),
        ("kgen", "fp32", ("node_norm", "expand_quantize")),
        ("convolution", "int8", ("expand",)),
        ("kgen", "fp16", ("node_where",)),
        ("shape_call", "int64", ("sizes",)),
        ("wait", "unknown", ()),
    ]


def test_names_alone() -> None:
    text = json.dumps(
        {
            "Layers": [
                "Reformatting CopyNode for Input Tensor 0 to node_conv3d",
                "node_conv3d + PWN(node_gelu)",
                "__myl_MeanSub_myl0_2",
            ],
            "Bindings": ["image", "logits"],
        }
    )
    assert short(parse_layers(text)) == [
        ("reformat", "unknown", ()),
        ("unknown", "unknown", ("node_conv3d", "PWN(node_gelu)")),
        ("unknown", "unknown", ()),
    ]


def test_a_list_without_its_object() -> None:
    assert [layer.name for layer in parse_layers('["a", "b"]')] == ["a", "b"]


def test_bare_control_characters_are_read() -> None:
    text = '{"Layers": [{"Name": "a\x1e\x1fb", "LayerType": "kgen", "Metadata": "[ONNX Layer: a]\x1f[ONNX Layer: b]"}]}'
    (layer,) = parse_layers(text)
    assert layer.origin == ("a", "b")


@pytest.mark.parametrize(
    ("words", "precision"),
    [
        ("Half", "fp16"),
        ("Float", "fp32"),
        ("Int8", "int8"),
        ("BFloat16", "bf16"),
        ("FP8", "fp8"),
        ("UInt8", "uint8"),
        ("Row major linear FP32", "fp32"),
        ("Two wide channel vectorized row major FP16 format", "fp16"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Row major linear BFloat16 format (kLINEAR)", "bf16"),
        ("something new", "unknown"),
    ],
)
def test_words_for_types(words: str, precision: str) -> None:
    layer: dict[str, Any] = {"Name": "n", "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": words}]}
    assert parse_layers(json.dumps({"Layers": [layer]}))[0].precision == precision


@pytest.mark.parametrize(
    ("name", "kind", "tactic", "found"),
    [
        ("n", "CudnnConvolution", "", "convolution"),
        ("n", "kgen", "__myl_ConvAdd_0x1", "convolution"),
        ("n", "fusion", "sm80_xmma_gemm_i8f32_i8i32_f32", "convolution"),
        ("n", "kgen", "__myl_ConvertMul", "kgen"),
        ("__myl_MoveConc_myl0_1", "kgen", "", "kgen"),  # a concatenation writes a tensor of its own
        ("__mye_ReshTran_myl0_1", "kgen", "", "reformat"),
        ("__myl_TranAdd_myl0_1", "kgen", "", "kgen"),
        ("n", "shuffle", "", "reformat"),
        ("n", "PointWiseV2", "", "pointwisev2"),
    ],
)
def test_kinds(name: str, kind: str, tactic: str, found: str) -> None:
    text = json.dumps({"Layers": [{"Name": name, "LayerType": kind, "TacticName": tactic}]})
    assert parse_layers(text)[0].kind == found


@pytest.mark.parametrize("text", ["", "null", "{}", '{"Layers": "none"}', "{"])
def test_text_that_is_not_what_it_should_be(text: str) -> None:
    with pytest.raises(ExportError, match="engine inspector's text"):
        parse_layers(text)


def test_an_engine_is_asked_for_json() -> None:
    def information(form: LayerInformationFormat) -> str:
        assert form is LayerInformationFormat.JSON
        return DETAILED_10

    engine = SimpleNamespace(create_engine_inspector=lambda: SimpleNamespace(get_engine_information=information))
    assert engine_layers(fake_module(), engine) == parse_layers(DETAILED_10)
