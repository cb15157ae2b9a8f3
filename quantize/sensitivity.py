"""What each layer costs and gains alone in INT8: the order in which accuracy control gives layers back to float."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from mednext_edge.models.logits import foreground_masks
from mednext_edge.quantize.calibration import Array
from mednext_edge.quantize.kinds import Layer, find
from mednext_edge.quantize.observe import open_graph
from mednext_edge.quantize.plan import Plan
from mednext_edge.task import Frozen

# Multiply-adds in the time of one byte to or from memory: 10 operations a byte, the ridge of two AVX-512 cores in
# float32; 14 to 28 on a GPU.
BALANCE = 5.0
FLOAT, INT8 = 4, 1
PARITY_PASSES = 7
"""Passes over the output of a parity form: its convolutions write it; joining, rearranging and cutting read and write
it once each. In one profile of OpenVINO (S k5, 48 x 64 x 48, two loaded AVX2 cores) INT8 took these three from 23 to 6
ms over all up blocks, and each of the four depthwise convolutions at full size from 32 to 22."""


class Sensitivity(Frozen):
    """One layer alone in INT8, all others in float32.

    Attributes:
        name, kind: of the layer.
        macs: multiply-adds for one patch.
        bytes: that it reads and writes in float32 for one patch, weights included.
        gain: what INT8 takes from its time, as a share of what it takes from all layers', by a roofline; what it
            reads and writes counts as INT8, as between layers that are INT8 too.
        nmse: squared error of the network's logits over their square, against float32.
        cosine: between the network's logits and those in float32.
        dice_drop: 1 minus the Dice of the labels against float32's; None where neither has foreground.
        decision: what the layer runs in.
        reason: for the decision.
    """

    name: str
    kind: str
    macs: int
    bytes: int
    gain: float
    nmse: float
    cosine: float
    dice_drop: float | None
    decision: Literal["int8", "float"] = "int8"
    reason: str = "nothing spoke against it"

    @property
    def price(self) -> float:
        """Error for what is gained; layers with the highest price are given back first."""
        return self.nmse / self.gain if self.gain > 0 else math.inf


def measure(
    graph: onnx.ModelProto,
    plan: Plan,
    patches: Sequence[Array],
    known: Collection[str] = (),
    *,
    regions: bool = False,
) -> Iterator[Sensitivity]:
    """Run the network once for every layer and patch.

    Args:
        graph: float32 or float16 without INT8, of the patches' shape.
        plan: the layers.
        patches: [1, C, *size].
        known: names of layers to leave out.
        regions: the outputs are regions in place of classes.

    Yields:
        One entry a layer, in the plan's order.

    Raises:
        ExportError: ONNX Runtime refuses the graph.
    """
    wanted = [name for name in plan.ranges if name not in known]
    if not wanted:
        return
    exact = list(_answers(graph, patches))
    costs = {name: _cost(graph, plan.layers[name]) for name in plan.ranges}
    whole = sum(saved for *_, saved in costs.values()) or 1.0
    for name in wanted:
        alone = plan.keeping(set(plan.ranges) - {name})
        nmse, cosine, dice_drop = _compare(exact, _answers(alone.apply(graph), patches), regions)
        macs, moved, saved = costs[name]
        yield Sensitivity(
            name=name,
            kind=plan.layers[name].kind,
            macs=macs,
            bytes=moved,
            gain=saved / whole,
            nmse=nmse,
            cosine=cosine,
            dice_drop=dice_drop,
        )


def crop(patch: Array, size: Sequence[int]) -> Array:
    """The centre of a patch [1, C, *spatial]; `size` is no larger than it."""
    middle = tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(patch.shape[2:], size, strict=True))
    return np.ascontiguousarray(patch[(slice(None), slice(None), *middle)])


def _answers(graph: onnx.ModelProto, patches: Sequence[Array]) -> Iterator[Array]:
    session = open_graph(graph)
    feed = session.get_inputs()[0].name
    for patch in patches:
        yield session.run(None, {feed: patch})[0]


def _compare(
    exact: Sequence[Array], found: Iterator[Array], regions: bool = False
) -> tuple[float, float, float | None]:
    """NMSE, cosine and 1 - Dice of logits [1, classes, *spatial], over all patches together."""
    sums = np.zeros(4)
    overlap: NDArray[np.float64] = np.zeros(())
    for a, b in zip(exact, found, strict=True):
        x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        sums += x @ x, y @ y, x @ y, (x - y) @ (x - y)
        one, two = foreground_masks(a, regions=regions), foreground_masks(b, regions=regions)
        axes = (0, *range(2, one.ndim))
        overlap = overlap + np.stack([2 * (one & two).sum(axes), one.sum(axes) + two.sum(axes)])
    present = overlap[1] > 0
    dice = float((overlap[0, present] / overlap[1, present]).mean()) if present.any() else None
    nmse = sums[3] / sums[0] if sums[0] > 0 else math.inf
    cosine = sums[2] / math.sqrt(sums[0] * sums[1]) if sums[0] * sums[1] > 0 else 0.0
    return float(nmse), float(cosine), None if dice is None else 1 - dice


def _cost(graph: onnx.ModelProto, layer: Layer) -> tuple[int, int, float]:
    """Multiply-adds, bytes in float32, and the time that INT8 saves, in bytes."""
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    sizes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    constants = {
        init.name: numpy_helper.to_array(init) for init in graph.graph.initializer if init.name in layer.weights
    }
    macs = moved = 0
    nodes = find(graph.graph, layer)
    for i, node in enumerate(nodes):
        out = math.prod(sizes[node.output[0]])
        moved += out * (PARITY_PASSES if len(nodes) > 1 else 1)
        moved += math.prod(sizes[node.input[0]]) if i == 0 else 0  # the parts of a parity form share their input
        if layer.weights:
            weights = constants[node.input[1]]
            moved += weights.size
            macs += out * weights[0].size
    before, after = (max(macs / BALANCE * size / FLOAT, moved * size) for size in (FLOAT, INT8))
    return macs, FLOAT * moved, before - after
