"""Every published MedNeXt at its full width: TensorRT for RTX parses and builds it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from mednext_edge.export.graph import INPUT, to_onnx
from mednext_edge.fusion import fuse
from mednext_edge.models.config import VARIANTS, MedNeXtConfig
from mednext_edge.models.families import FAMILIES
from mednext_edge.models.loaded import LoadedModel, Source
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.nvidia.build import build_plan
from mednext_edge.nvidia.recipe import BuildRecipe
from mednext_edge.task import Inference, Preprocessing, Task

from .conftest import build_options

# The smallest whose bottleneck, a sixteenth of it, still has more than one voxel to take statistics over.
PATCH = (32, 32, 32)
CHANNELS = 32


def published(variant: str, kernel: int) -> LoadedModel:
    expansion, blocks = VARIANTS[variant]
    config = MedNeXtConfig(
        classes=3,
        channels=CHANNELS,
        expansion=expansion,
        down_expansion=expansion[1:5],
        blocks=blocks,
        encoder_kernel=kernel,
        decoder_kernel=kernel,
    )
    net = MedNeXt(config).eval()
    task = Task(
        name=f"{variant} k{kernel}",
        model=FAMILIES["mednext"].describe(net),
        preprocessing=Preprocessing(),
        inference=Inference(patch=PATCH),
        labels={"background": 0, "one": 1, "two": 2},
    )
    return LoadedModel(net, task, Source(format="random", file="none", sha256="0" * 64))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_published_network_is_built(variant: str, kernel: int, tmp_path: Path) -> None:
    build_options("trt-rtx")  # skips without its package
    model = fuse(published(variant, kernel))
    assert (model.task.model.variant, model.task.model.kernel_size) == (variant, kernel)
    onnx.save(to_onnx(model, PATCH, half=True), tmp_path / "model.onnx")
    recipe = BuildRecipe(provider="tensorrt-rtx", input=INPUT, channels=1, min=PATCH, opt=PATCH, max=PATCH)
    build_plan(tmp_path / "model.onnx", recipe, tmp_path / "model.plan", arch="8.6")
    # Two bytes a weight: a plan without its weights would be far smaller than that.
    assert (tmp_path / "model.plan").stat().st_size > 1.5 * model.task.model.parameters
