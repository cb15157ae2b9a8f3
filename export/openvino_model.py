"""An ONNX graph as OpenVINO's model, with its own operators where they are faster."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from mednext_edge.export.depth_to_space import use_depth_to_space
from mednext_edge.export.parts import part_convolutions

if TYPE_CHECKING:
    import onnx
    import openvino as ov


def to_openvino(graph: onnx.ModelProto) -> tuple[ov.Model, dict[str, list[str]]]:
    """The model, and the names of convolutions that stand for one of the graph, by its name."""
    import openvino as ov

    whole, parts = part_convolutions(graph)
    # Unlike `read_model`, this folds constants.
    model = ov.convert_model(io.BytesIO(whole.SerializeToString()))
    use_depth_to_space(model)
    return model, parts
