"""Everything a plan is built from but the graph, as data: it travels in the bundle and is followed on the device."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mednext_edge.task import Frozen

RECIPE = "build.json"
"""Its place in a bundle."""

HardwareCompatibility = Literal["none", "ampere+", "same-cc"]


class BuildRecipe(Frozen):
    """How a plan is built from an ONNX graph; precisions stand in the graph itself.

    Attributes:
        provider: a name in PROVIDERS.
        graph: the ONNX file, relative to the bundle.
        archs: compute capabilities to build for, such as `8.6`; none means the device that builds.
        input: name of the graph's input.
        channels: of the input.
        min, opt, max: patches of the optimisation profile; all the same for a fixed patch.
        workspace_mib: limit of the builder's scratch memory; None is all that the device has.
        optimization_level: 0..5; None is the builder's default.
        hardware_compatibility: on which other GPUs the plan runs; `ampere+` is any from 8.0, `same-cc` any of the same
            compute capability.
        version_compatible: the plan runs in newer TensorRT of the same major version.
    """

    provider: str
    graph: str = "model.onnx"
    archs: tuple[str, ...] = ()
    input: str
    channels: int = Field(ge=1)
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]
    workspace_mib: int | None = Field(default=None, ge=1)
    optimization_level: int | None = Field(default=None, ge=0, le=5)
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> BuildRecipe:
        sizes = zip(self.min, self.opt, self.max, strict=True)
        if not all(0 < low <= usual <= high for low, usual, high in sizes):
            raise ValueError(f"expected min <= opt <= max on every axis, found {self.min}, {self.opt}, {self.max}")
        return self

    @property
    def static(self) -> bool:
        """Whether the plan takes one patch alone."""
        return self.min == self.max

    def shape(self, patch: tuple[int, ...]) -> tuple[int, ...]:
        """The input's shape for one patch: [1, channels, *patch]."""
        return (1, self.channels, *patch)
