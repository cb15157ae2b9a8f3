"""Ranges of activations, from one pass of the float network over calibration patches.

An estimator takes the threshold of a tensor from a histogram of its absolute values. That of the default loses least:
values above it are clipped, those below are rounded, and the expected squared error of both together is smallest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor

from mednext_edge.errors import DataError
from mednext_edge.quantize.calibration import ESTIMATOR
from mednext_edge.quantize.flavour import LEVELS
from mednext_edge.quantize.kinds import Layer, find
from mednext_edge.quantize.observe import Seen
from mednext_edge.registry import Registry

BINS = 2048
# Thresholds that are compared: 1 % apart, down to 1/128 of the largest value.
CANDIDATES, OCTAVES = 512, 7
PERCENTILE = 0.9999


@dataclass(frozen=True)
class ActivationRange:
    """Of the input of one layer.

    Attributes:
        threshold: |x| that becomes 127, above 0.
        peak: largest |x| seen.
        mean: [C], over all patches and voxels; None where no bias is to be corrected.
    """

    threshold: float
    peak: float
    mean: Tensor | None


class Histogram:
    """Of absolute values, over a range that doubles when a larger one comes; two bins are then one.

    Zeros are not counted: they lose nothing, whatever the threshold.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.top = self.peak = 0.0

    def add(self, values: Tensor, peak: float) -> None:
        """Count a sample of values, none of which exceeds `peak` in absolute value."""
        if peak == 0:
            return
        self.top = self.top or peak
        self.peak = max(self.peak, peak)
        while peak > self.top:
            self.counts = torch.cat([self.counts.view(-1, 2).sum(1), torch.zeros(BINS // 2, dtype=torch.float64)])
            self.top *= 2
        # In double precision: the range may reach beyond float32.
        self.counts += torch.histc(values[values != 0].abs().double(), BINS, 0, self.top)

    def threshold(self, estimator: str = ESTIMATOR) -> float:
        """By a name in ESTIMATORS; of an input that is always zero 1, for it loses nothing at any."""
        return ESTIMATORS[estimator](self) if self.counts.any() else self.peak or 1.0

    @property
    def edges(self) -> Tensor:
        """Of the bins up to the last that holds a value, one more than those."""
        bins = int(self.counts.nonzero().max()) + 1
        return torch.arange(bins + 1, dtype=torch.float64) * (self.top / BINS)


def least_error(histogram: Histogram) -> float:
    """The clipping threshold of least expected squared error."""
    edges = histogram.edges
    thresholds = edges[-1] * torch.logspace(-OCTAVES, 0, CANDIDATES, base=2, dtype=torch.float64)
    step = (thresholds / LEVELS)[:, None]
    level = (edges / step).round().clamp(max=LEVELS)
    # The integral of (x - nearest level)^2 from 0 to each edge; inside a bin, values are spread evenly.
    error = level * step**3 / 12 + (edges - level * step) ** 3 / 3
    return float(thresholds[int((error.diff(dim=1) @ histogram.counts[: len(edges) - 1]).argmin())])


def percentile(histogram: Histogram) -> float:
    """Above which one of ten thousand values lies, zeros not counted."""
    share = histogram.counts.cumsum(0) / histogram.counts.sum()
    return float(histogram.edges[int((share < PERCENTILE).sum()) + 1])


def largest(histogram: Histogram) -> float:
    """The largest value: nothing is clipped."""
    return histogram.peak


ESTIMATORS: Registry[Callable[[Histogram], float]] = Registry("estimator")
"""How a threshold is chosen from a histogram that holds some value."""

ESTIMATORS.add("least-error", least_error)
ESTIMATORS.add("percentile", percentile)
ESTIMATORS.add("min-max", largest)


class _Tensor:
    """What is kept of one tensor over all patches."""

    def __init__(self) -> None:
        self.histogram = Histogram()
        self.peak = 0.0
        self.means: list[Tensor] = []

    def see(self, seen: Seen) -> None:
        assert seen.mean is not None
        assert seen.sample is not None
        self.peak = max(self.peak, seen.peak)
        if math.isfinite(seen.peak):
            self.histogram.add(torch.from_numpy(seen.sample), seen.peak)
            self.means.append(torch.from_numpy(seen.mean))

    def range(self, estimator: str) -> ActivationRange:
        return ActivationRange(self.histogram.threshold(estimator), self.peak, torch.stack(self.means).mean(0))


class Ranges:
    """Follows the inputs of some layers over patches.

    Args:
        graph: float32 or float16, of a network in deploy form, whose weights have the names of the parameters.
        layers: of this network.
        estimator: a name in ESTIMATORS.

    Attributes:
        tensors: names of the inputs, to be observed in the graph.

    Raises:
        ExportError: the graph lacks the weights of one of the layers.
    """

    def __init__(self, graph: onnx.ModelProto, layers: Iterable[Layer], estimator: str = ESTIMATOR) -> None:
        self._estimator = estimator
        self._sources = {layer.name: find(graph.graph, layer)[0].input[0] for layer in layers}
        self._seen = {source: _Tensor() for source in self._sources.values()}
        self.tensors = tuple(self._seen)

    def see(self, values: Mapping[str, Seen]) -> None:
        """Take what `tensors` hold for one patch."""
        for source, tensor in self._seen.items():
            tensor.see(values[source])

    def result(self) -> dict[str, ActivationRange]:
        """Ranges by the layers' names.

        Raises:
            DataError: an input of a layer is not finite.
        """
        for name, source in self._sources.items():
            if self._seen[source].peak == math.inf:
                raise DataError(f"the input of {name} is not finite on the calibration patches; look at the images")
        return {name: self._seen[source].range(self._estimator) for name, source in self._sources.items()}
