"""Single operators at a width of MedNeXt's first level."""

from __future__ import annotations

import pytest
from conftest import PATCH, Timed
from torch import nn

from mednext_edge.fusion.instance_norm import InstanceNorm
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.models.module import ModuleSpec

WIDTH = 32
KERNELS: dict[str, nn.Module] = {
    "pointwise": nn.Conv3d(WIDTH, WIDTH, 1),
    "depthwise-3": nn.Conv3d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH),
    "depthwise-5": nn.Conv3d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH),
    "depthwise-7": nn.Conv3d(WIDTH, WIDTH, 7, padding=3, groups=WIDTH),
    "dense-3": nn.Conv3d(WIDTH, WIDTH, 3, padding=1),
    "norm": InstanceNorm(1e-5),
}


@pytest.mark.parametrize("engine", ["torch eager", "ours fp32", "ours int8"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel(timed: Timed, engine: str, kernel: str) -> None:
    spec = ModuleSpec(name=kernel, in_channels=WIDTH, classes=WIDTH, patch=PATCH)
    timed(engine, LoadedModel.from_module(nn.Sequential(KERNELS[kernel]), spec))
