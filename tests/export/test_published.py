"""Every size of every family at its full width: TensorRT for RTX parses and builds it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import pytest
from torch import nn

from mednext_edge.export.graph import INPUT, to_onnx
from mednext_edge.fusion import fuse
from mednext_edge.models.cmunext import VARIANTS as CMUNEXT_VARIANTS
from mednext_edge.models.cmunext import CMUNeXt, cmunext_config
from mednext_edge.models.config import VARIANTS, MedNeXtConfig
from mednext_edge.models.families import FAMILIES
from mednext_edge.models.loaded import LoadedModel, Source
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.models.mednext2d import VARIANTS as MEDNEXT2D_VARIANTS
from mednext_edge.models.mednext2d import MedNeXt2d, mednext2d_config
from mednext_edge.nvidia.build import build_plan
from mednext_edge.nvidia.recipe import BuildRecipe
from mednext_edge.task import Inference, Normalization, Preprocessing, Task

from .conftest import build_options

# The smallest whose bottleneck, a sixteenth of it, still has more than one voxel to take statistics over.
PATCH = (32, 32, 32)
PHOTOGRAPH = (256, 256)
CHANNELS = 32


def mednext(variant: str, kernel: int) -> MedNeXt:
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
    return MedNeXt(config)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{f"mednext {v} k{k}": partial(mednext, v, k) for k in (3, 5) for v in VARIANTS},
    **{f"cmunext {v}": partial(lambda v: CMUNeXt(cmunext_config(v)), v) for v in CMUNEXT_VARIANTS},
    **{
        f"mednext2d {v} {kind}": partial(lambda v, kind: MedNeXt2d(mednext2d_config(v, kind=kind)), v, kind)
        for v, kind in [*((v, "segmentation") for v in MEDNEXT2D_VARIANTS), ("tiny", "classification")]
    },
}


def loaded(name: str) -> LoadedModel:
    net = NETWORKS[name]().eval()
    spec = FAMILIES[name.split()[0]].describe(net)
    patch = PATCH if spec.spatial_dims == 3 else PHOTOGRAPH
    labels = {f"label {i}": i for i in range(spec.labels)}
    normalization = (Normalization(),) * spec.in_channels
    preprocessing = Preprocessing(normalization=normalization)
    task = Task(name=name, model=spec, preprocessing=preprocessing, inference=Inference(patch=patch), labels=labels)
    return LoadedModel(net, task, Source(format="random", file="none", sha256="0" * 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_at_full_width_is_built(name: str, tmp_path: Path) -> None:
    build_options("trt-rtx")  # skips without its package
    model = fuse(loaded(name))
    spec, patch = model.task.model, model.task.inference.patch
    assert spec.variant in name.split()
    onnx.save(to_onnx(model, patch, half=True), tmp_path / "model.onnx")
    recipe = BuildRecipe(
        provider="tensorrt-rtx", input=INPUT, channels=spec.in_channels, min=patch, opt=patch, max=patch
    )
    build_plan(tmp_path / "model.onnx", recipe, tmp_path / "model.plan", arch="8.6")
    # Two bytes a weight: a plan without its weights would be far smaller than that.
    assert (tmp_path / "model.plan").stat().st_size > 1.5 * spec.parameters
