"""Quantisers before the operators that only move data.

NNCF quantises where a number is used. Behind a transposed convolution that is after joining, interleaving and
cutting, so that the largest tensors of the network move as float32. Rounding commutes with moving: quantised at
the source, the same numbers travel in a quarter of the bytes.
"""

from __future__ import annotations

import math

import openvino as ov
from openvino import opset13 as ops

MOVING = frozenset({"Concat", "DepthToSpace", "Slice"})


def quantize_early(model: ov.Model) -> int:
    """Move each FakeQuantize in front of the data movement that feeds it alone; returns how many were moved."""
    found = [node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize" and _per_tensor(node)]
    count = 0
    for quantizer in found:
        moved = quantizer.input_value(0)
        if not _only_moves(moved):
            continue
        ranges = [quantizer.input_value(i) for i in range(1, 5)]
        for place in _sources(quantizer.input(0)):
            early = ops.fake_quantize(place.get_source_output(), *ranges, quantizer.get_attributes()["levels"])
            place.replace_source_output(early.output(0))
        for reader in list(quantizer.output(0).get_target_inputs()):
            reader.replace_source_output(moved)
        count += 1
    model.validate_nodes_and_infer_types()
    return count


def _per_tensor(quantizer: ov.Node) -> bool:
    """Whether one range holds for all channels; a range per channel would have to be moved as the channels are."""
    return all(math.prod(quantizer.input_value(i).get_shape()) == 1 for i in range(1, 5))


def _only_moves(value: ov.Output) -> bool:
    """Whether this comes from data movement, and nothing else reads it."""
    return value.get_node().get_type_name() in MOVING and len(value.get_target_inputs()) == 1


def _sources(place: ov.Input) -> list[ov.Input]:
    """The inputs, up the graph, where numbers enter the movement."""
    value = place.get_source_output()
    if not _only_moves(value):
        return [place]
    node = value.get_node()
    data = node.inputs() if node.get_type_name() == "Concat" else node.inputs()[:1]
    return [source for one in data for source in _sources(one)]
