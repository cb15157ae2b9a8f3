"""What a plan runs, layer by layer, as its own inspector tells.

The text is that of TensorRT's engine inspector: <https://docs.nvidia.com/deeplearning/tensorrt/latest/>, "Engine
Inspector". Versions differ in how they word a type ("Half", "Row major linear FP16 format"), in the lists around the
layers, and in how much they tell at all: a plan that was not built with detailed verbosity has nothing but names.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from mednext_edge.errors import ExportError

UNKNOWN = "unknown"

_TYPES = (
    ("fp4", r"fp4|e2m1"),
    ("int4", r"int4"),
    ("fp8", r"fp8|e4m3"),
    ("uint8", r"uint8"),
    ("int8", r"int8"),
    ("bf16", r"bf16|bfloat16"),
    ("fp16", r"fp16|half|float16"),
    ("fp32", r"fp32|float|float32"),
    ("int32", r"int32"),
    ("int64", r"int64"),
    ("bool", r"bool"),
)
"""How a type is worded, from narrow to wide; those after `fp32` hold sizes and masks, not voxels."""

_ORDER = [name for name, _ in _TYPES]
_VOXELS = set(_ORDER[: _ORDER.index("fp32") + 1])
_WORDS = re.compile("|".join(f"(?P<{name}>\\b(?:{words})\\b)" for name, words in _TYPES), re.IGNORECASE)

_ONNX = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_REFORMAT = re.compile(r"(reformat|noop|shuffle|transpose)\w*", re.IGNORECASE)
_MOVES = re.compile(r"Reformatting CopyNode|__my[el]_(Move|Tran|Resh)+(_|$)")
"""Names of layers that only move data: the first is TensorRT's own, the second of its Myelin compiler."""
_PRODUCT = re.compile(r"conv(?!ert)|correlation|fprop|dgrad|gemm|matmul|matrixmultiply", re.IGNORECASE)


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine; the builder makes one of many nodes, and adds some of its own.

    Attributes:
        name: as the engine has it.
        kind: `convolution`, transposed or computed as a matrix product alike; `reformat`, which only moves data; or
            the engine's own word in lower case.
        precision: what it computes in, such as `fp16` or `int8`; `unknown` where the engine does not tell.
        origin: names of the ONNX nodes that it was made from; none for a layer of the builder's own.
    """

    name: str
    kind: str
    precision: str
    origin: tuple[str, ...]


def engine_layers(module: ModuleType, engine: Any) -> tuple[EngineLayer, ...]:
    """The layers of an engine in the order they run.

    Args:
        module: TensorRT or TensorRT for RTX.
        engine: its `ICudaEngine`.

    Raises:
        ExportError: the inspector's text is not the JSON it should be.
    """
    return parse_layers(engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON))


def parse_layers(text: str) -> tuple[EngineLayer, ...]:
    """The layers in an inspector's JSON text; also of the file that `trtexec --exportLayerInfo` writes.

    Raises:
        ExportError: it is not JSON, or has no list of layers.
    """
    try:
        found = json.loads(text, strict=False)  # names are joined with control characters
    except json.JSONDecodeError as error:
        raise ExportError(f"the engine inspector's text is not JSON ({error}); update TensorRT") from error
    layers = found.get("Layers") if isinstance(found, dict) else found
    if not isinstance(layers, list):
        raise ExportError("the engine inspector's text has no list `Layers`; build the plan with detailed verbosity")
    return tuple(_named(layer) if isinstance(layer, str) else _detailed(layer) for layer in layers)


def _named(name: str) -> EngineLayer:
    """A layer of which nothing but its name is told."""
    kind = "reformat" if _MOVES.match(name) else UNKNOWN
    return EngineLayer(name=name, kind=kind, precision=UNKNOWN, origin=_origin(name, "", kind))


def _detailed(layer: dict[str, Any]) -> EngineLayer:
    name = layer.get("Name", "")
    kind = _kind(name, layer)
    return EngineLayer(
        name=name,
        kind=kind,
        precision=_precision(kind, layer),
        origin=_origin(name, layer.get("Metadata", ""), kind),
    )


def _kind(name: str, layer: dict[str, Any]) -> str:
    own = layer.get("LayerType", UNKNOWN)
    if _REFORMAT.fullmatch(own) or _MOVES.match(name):
        return "reformat"
    # A compiled layer may be told from its kernel alone: `sm80_xmma_fprop_implicit_gemm_...`
    if any(_PRODUCT.search(layer.get(key, "")) for key in ("LayerType", "ParameterType", "TacticName")):
        return "convolution"
    return str(own).lower()


def _precision(kind: str, layer: dict[str, Any]) -> str:
    """A convolution multiplies in the narrowest type it reads, beside a wider residual or bias.

    Anything else computes in the widest type it touches: quantising float16 is float16's work.
    """
    read, written = (_types(layer.get(side, [])) for side in ("Inputs", "Outputs"))
    touched = read if kind == "convolution" and read else read | written
    found = sorted(touched & _VOXELS or touched, key=_ORDER.index)
    if not found:
        return UNKNOWN
    return found[0] if kind == "convolution" else found[-1]


def _types(tensors: list[dict[str, Any]]) -> set[str]:
    """The types of tensors, by the words under `Format/Datatype`, or `Datatype` in some versions."""
    words = [str(value) for tensor in tensors for key, value in tensor.items() if "datatype" in key.lower()]
    matches = (_WORDS.search(word) for word in words)
    return {str(match.lastgroup) for match in matches if match}


def _origin(name: str, metadata: str, kind: str) -> tuple[str, ...]:
    """From the metadata, or from a name that is the nodes' names joined."""
    if "[ONNX Layer: " in metadata:
        return tuple(dict.fromkeys(_ONNX.findall(metadata)))
    if kind == "reformat" or name.startswith("__my") or not name:
        return ()
    return tuple(name.split(" + "))
