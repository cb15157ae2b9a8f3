"""Interleaving as OpenVINO's own operator.

ONNX has DepthToSpace for images only; on a volume it stands as Reshape, Transpose, Reshape, and OpenVINO's CPU plugin
runs that transposition of eight axes in float32, element by element. `DepthToSpace` takes any number of axes and
INT8 (https://docs.openvino.ai, "DepthToSpace", mode `blocks_first`).
"""

from __future__ import annotations

import openvino as ov
from openvino import opset13 as ops

BLOCK = 2


def use_depth_to_space(model: ov.Model) -> int:
    """Replace every interleaving of parities by one operator; returns how many there were."""
    count = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Transpose" or not _interleaves(node):
            continue
        stacked = node.input_value(0).get_node()
        readers = list(node.output(0).get_target_inputs())
        whole = readers[0].get_node()
        if len(readers) != 1 or stacked.get_type_name() != "Reshape" or whole.get_type_name() != "Reshape":
            continue
        blocks = list(stacked.output(0).get_partial_shape())[
            1 : node.output(0).get_partial_shape().rank.get_length() // 2
        ]
        if any(size != BLOCK for size in blocks):
            continue
        new = ops.depth_to_space(stacked.input_value(0), "blocks_first", BLOCK)
        new.set_friendly_name(whole.get_friendly_name())
        for after in list(whole.output(0).get_target_inputs()):
            after.replace_source_output(new.output(0))
        count += 1
    model.validate_nodes_and_infer_types()
    return count


def _interleaves(transpose: ov.Node) -> bool:
    """Whether [N, 2, .., 2, C, *n] becomes [N, C, n, 2, n, 2, ..]."""
    order = transpose.input_value(1).get_node()
    if order.get_type_name() != "Constant":
        return False
    found = [int(axis) for axis in order.get_data()]
    dims = (len(found) - 2) // 2
    expected = [0, 1 + dims]
    for axis in range(dims):
        expected += [2 + dims + axis, 1 + axis]
    return dims > 0 and found == expected
