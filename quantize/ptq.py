"""Post-training INT8: which layers, and the ranges of their inputs from calibration patches.

One way for every engine. Activations are symmetric: TensorRT takes no others, and OpenVINO computes a depthwise
convolution of asymmetric ones in FP32 without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import onnx
from torch import nn

from mednext_edge.errors import ExportError
from mednext_edge.quantize.calibration import CalibrationSet
from mednext_edge.quantize.flavour import Flavour
from mednext_edge.quantize.headroom import Headroom
from mednext_edge.quantize.kinds import Layer, layers
from mednext_edge.quantize.observe import observe
from mednext_edge.quantize.plan import Plan
from mednext_edge.quantize.range_cache import RangeCache
from mednext_edge.quantize.ranges import Ranges


def choose(net: nn.Module, kinds: Collection[str]) -> dict[str, Layer]:
    """The layers of a network in deploy form to quantise, by name.

    Args:
        net: the network.
        kinds: names in KINDS.

    Raises:
        ExportError: it has none of these kinds.
    """
    chosen = {layer.name: layer for layer in layers(net) if layer.kind in kinds and layer.quantizable}
    if not chosen:
        raise ExportError(f"this network has no layer of the kinds {', '.join(kinds)} to quantise")
    return chosen


def calibrate(
    graph: onnx.ModelProto,
    net: nn.Module,
    calibration: CalibrationSet,
    flavour: Flavour,
    *,
    kinds: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """One pass over the patches: the ranges of all inputs, and whether float16 holds what a graph leaves to it.

    What was found is kept; the same graph and patches are not passed again (`range_cache`).

    Args:
        graph: float32 or float16, of the patches' shape.
        net: the network that it was made from, in deploy form.
        calibration: patches.
        flavour: of the engine.
        kinds: of layers to quantise in place of the flavour's, names in KINDS.
        progress: called as (patches taken, patches in all).

    Raises:
        DataError: an input of a layer is not finite.
        ExportError: there is nothing to quantise, float16 cannot hold an activation, or ONNX Runtime refuses the graph.
    """
    chosen = choose(net, kinds or flavour.kinds)
    headroom, ranges = Headroom(graph), Ranges(graph, chosen.values(), calibration.estimator)
    cache = RangeCache(graph, chosen, calibration)
    if (kept := cache.load()) is not None:
        return Plan(chosen, kept, flavour)
    passes = observe(graph, calibration, extremes=headroom.tensors, samples=ranges.tensors, progress=progress)
    for values in passes:
        headroom.see(values)
        ranges.see(values)
        del values  # before the next are made
    headroom.check()
    result = ranges.result()
    cache.save(result)
    return Plan(chosen, result, flavour)
