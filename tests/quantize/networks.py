"""Small networks with everything that INT8 is made from: graphs, calibration patches, ranges."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import onnx

from mednext_edge.export import graph as exporter
from mednext_edge.fusion import fuse
from mednext_edge.models.config import MedNeXtConfig
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.quantize.calibration import CalibrationSet
from mednext_edge.quantize.flavour import NVIDIA
from mednext_edge.quantize.kinds import KINDS, Layer, layers
from mednext_edge.quantize.observe import observe
from mednext_edge.quantize.qdq import insert
from mednext_edge.quantize.ranges import ActivationRange, Ranges
from tests.fusion.networks import Config, loaded

WIDE = MedNeXtConfig(
    in_channels=2,
    classes=3,
    channels=16,
    blocks=(1,) * 3,
    expansion=(2, 3, 2),
    down_expansion=(2,),
    down_grn=(False,),
)
"""One level, and wide enough for every kind of layer but the dense one."""
WITH_GRN = replace(WIDE, grn=True, down_grn=(True,))
FLAT = replace(WIDE, spatial_dims=2)

NETWORKS: dict[str, tuple[MedNeXtConfig, tuple[str, ...], tuple[str, ...]]] = {
    "pointwise": (WIDE, (), ("pointwise",)),
    "all, GRN": (WITH_GRN, ("parity",), tuple(KINDS)),
    "all, 2-D": (FLAT, ("parity",), tuple(KINDS)),
}
"""Configuration, optional rewrites, and the kinds of layer that become INT8."""


def fused(config: Config, optional: Collection[str] = ()) -> LoadedModel:
    """The deploy form in float32, every parameter random."""
    model = loaded(config)
    model.net.float()
    return fuse(model, optional=optional)


def noise(config: Config, patch: tuple[int, ...], count: int = 3, seed: int = 0) -> CalibrationSet:
    """Patches of noise around 0.5, so that no mean is zero."""
    rng = np.random.default_rng(seed)
    shape = (1, config.in_channels, *patch)
    patches = tuple((rng.standard_normal(shape) + 0.5).astype(np.float32) for _ in range(count))
    return CalibrationSet(patches, ("noise",), "0" * 64, 0)


def collect(
    graph: onnx.ModelProto,
    layers: Iterable[Layer],
    calibration: CalibrationSet,
) -> dict[str, ActivationRange]:
    """Ranges of the inputs of some layers, by name."""
    ranges = Ranges(graph, layers)
    for values in observe(graph, calibration, samples=ranges.tensors):
        ranges.see(values)
    return ranges.result()


@dataclass(frozen=True, eq=False)
class Network:
    """A network in deploy form, and what the quantiser makes of it."""

    config: MedNeXtConfig
    model: LoadedModel
    kinds: tuple[str, ...]

    @property
    def patch(self) -> tuple[int, ...]:
        return (8,) * self.config.spatial_dims

    @cached_property
    def calibration(self) -> CalibrationSet:
        return noise(self.config, self.patch)

    @cached_property
    def chosen(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in layers(self.model.net) if layer.kind in self.kinds and layer.quantizable}

    @cached_property
    def graph(self) -> onnx.ModelProto:
        return exporter.to_onnx(self.model, self.patch)

    @cached_property
    def half(self) -> onnx.ModelProto:
        return exporter.to_onnx(self.model, self.patch, half=True)

    @cached_property
    def ranges(self) -> dict[str, ActivationRange]:
        return collect(self.graph, self.chosen.values(), self.calibration)

    def int8(self, half: bool = False) -> onnx.ModelProto:
        """The graph with INT8 convolutions."""
        return insert(self.half if half else self.graph, self.chosen, self.ranges, NVIDIA)


@cache
def network(name: str) -> Network:
    """One of NETWORKS; made once for all tests."""
    config, optional, kinds = NETWORKS[name]
    return Network(config, fused(config, optional), kinds)
