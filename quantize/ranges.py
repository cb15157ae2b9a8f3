"""Ranges of activations, from one pass of the float network over calibration patches.

The threshold of a tensor is the one that loses least: values above it are clipped, those below are rounded, and the
expected squared error of both together is smallest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor

from mednext_edge.errors import DataError, ExportError
from mednext_edge.quantize.calibration import CalibrationSet
from mednext_edge.quantize.kinds import Layer
from mednext_edge.quantize.observe import Array, observe

LEVELS = 127
"""Largest value of a symmetric signed INT8 number; -128 is not used, so that both signs reach equally far."""
BINS = 2048
# Thresholds that are compared: 1 % apart, down to 1/128 of the largest value.
CANDIDATES, OCTAVES = 512, 7
# Voxels that enter the histogram of one tensor of one patch; the largest value is taken over all of them.
SAMPLED = 2**18


@dataclass(frozen=True)
class ActivationRange:
    """Of the input of one layer.

    Attributes:
        threshold: |x| that becomes 127, above 0.
        peak: largest |x| seen.
        mean: [C], over all patches and voxels.
    """

    threshold: float
    peak: float
    mean: Tensor


class Histogram:
    """Of absolute values, over a range that doubles when a larger one comes; two bins are then one.

    Zeros are not counted: they lose nothing, whatever the threshold.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.top = 0.0

    def add(self, values: Tensor, peak: float) -> None:
        """Count values, none of which exceeds `peak` in absolute value."""
        if peak == 0:
            return
        self.top = self.top or peak
        while peak > self.top:
            self.counts = torch.cat([self.counts.view(-1, 2).sum(1), torch.zeros(BINS // 2, dtype=torch.float64)])
            self.top *= 2
        # In double precision: the range may reach beyond float32.
        self.counts += torch.histc(values[values != 0].abs().double(), BINS, 0, self.top)

    def threshold(self) -> float:
        """The clipping threshold of least expected squared error; 1 when every value is zero."""
        filled = self.counts.nonzero()
        if not len(filled):
            return 1.0
        edges = torch.arange(BINS + 1, dtype=torch.float64) * (self.top / BINS)
        reach = edges[int(filled.max()) + 1]
        thresholds = reach * torch.logspace(-OCTAVES, 0, CANDIDATES, base=2, dtype=torch.float64)
        step = (thresholds / LEVELS)[:, None]
        level = (edges / step).round().clamp(max=LEVELS)
        # The integral of (x - nearest level)^2 from 0 to each edge; inside a bin, values are spread evenly.
        error = level * step**3 / 12 + (edges - level * step) ** 3 / 3
        return float(thresholds[int((error.diff(dim=1) @ self.counts).argmin())])


class _Tensor:
    """What is kept of one tensor over all patches."""

    def __init__(self) -> None:
        self.histogram = Histogram()
        self.peak = 0.0
        self.means: list[Tensor] = []

    def see(self, x: Tensor) -> None:
        low, high = x.aminmax()
        peak = max(-float(low), float(high))
        self.peak = max(self.peak, peak) if math.isfinite(peak) else math.inf  # a NaN is smaller than nothing
        if math.isfinite(peak):
            flat = x.flatten()
            # An odd step, so that the sample does not stay in one plane of a volume with even sides.
            self.histogram.add(flat[:: flat.numel() // SAMPLED | 1], peak)
            self.means.append(x.transpose(0, 1).flatten(1).mean(1))

    def range(self) -> ActivationRange:
        return ActivationRange(self.histogram.threshold(), self.peak, torch.stack(self.means).mean(0))


class Ranges:
    """Follows the inputs of some layers over patches.

    Args:
        graph: float32 or float16, of a network in deploy form, whose weights have the names of the parameters.
        layers: of this network.

    Attributes:
        tensors: names of the inputs, to be observed in the graph.

    Raises:
        ExportError: the graph lacks the weights of one of the layers.
    """

    def __init__(self, graph: onnx.ModelProto, layers: Iterable[Layer]) -> None:
        readers = {node.input[1]: node.input[0] for node in graph.graph.node if node.op_type == "Conv"}
        self._sources = {}
        for layer in layers:
            if layer.weights[0] not in readers:
                raise ExportError(f"the graph has no convolution with the weights {layer.weights[0]}")
            self._sources[layer.name] = readers[layer.weights[0]]
        self._seen = {source: _Tensor() for source in self._sources.values()}
        self.tensors = tuple(self._seen)

    def see(self, values: Mapping[str, Array]) -> None:
        """Take the values of `tensors` for one patch."""
        for source, tensor in self._seen.items():
            tensor.see(torch.from_numpy(values[source]))

    def result(self) -> dict[str, ActivationRange]:
        """Ranges by the layers' names.

        Raises:
            DataError: an input of a layer is not finite.
        """
        for name, source in self._sources.items():
            if self._seen[source].peak == math.inf:
                raise DataError(f"the input of {name} is not finite on the calibration patches; look at the images")
        return {name: self._seen[source].range() for name, source in self._sources.items()}


def collect(
    graph: onnx.ModelProto,
    layers: Iterable[Layer],
    calibration: CalibrationSet,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, ActivationRange]:
    """Ranges of the inputs of some layers, by name.

    Args:
        graph, layers: as `Ranges` takes them.
        calibration: patches of the shape of the graph's input.
        progress: called as (patches taken, patches in all).

    Raises:
        DataError: an input of a layer is not finite.
        ExportError: the graph cannot be run, or lacks the weights of one of the layers.
    """
    ranges = Ranges(graph, layers)
    for values in observe(graph, ranges.tensors, calibration, progress):
        ranges.see(values)
    return ranges.result()
