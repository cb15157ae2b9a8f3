"""Networks in float64 with weights that leave no term of a rewrite at zero or one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mednext_edge.models.cmunext import VARIANTS as CMUNEXT_VARIANTS
from mednext_edge.models.cmunext import CMUNeXtConfig
from mednext_edge.models.config import VARIANTS, MedNeXtConfig
from mednext_edge.models.families import FAMILIES
from mednext_edge.models.loaded import LoadedModel, Source
from mednext_edge.models.mednext2d import MedNeXt2dConfig
from mednext_edge.models.modules2d import ATTENTION, FEED_FORWARD, SPATIAL
from mednext_edge.task import Inference, Normalization, Preprocessing, Task

TINY = MedNeXtConfig(
    in_channels=2,
    classes=3,
    channels=4,
    blocks=(1,) * 5,
    expansion=(2, 3, 2, 3, 2),
    down_expansion=(3, 2),
    down_grn=(False,) * 2,
)
"""Two levels, with ratios that differ from stage to stage."""

WITH_GRN = replace(TINY, grn=True, down_grn=(False, True))


def levels(count: int) -> MedNeXtConfig:
    """`TINY` with another number of down-samplings."""
    return replace(
        TINY,
        channels=2,
        blocks=(1,) * (2 * count + 1),
        expansion=(2,) * (2 * count + 1),
        down_expansion=(3,) * count,
        down_grn=(False,) * count,
    )


def published(variant: str, *, monai: bool = False, channels: int = 2) -> MedNeXtConfig:
    """A published variant with its block counts and ratios, but `channels` wide."""
    expansion, blocks = VARIANTS[variant]
    return MedNeXtConfig(
        classes=3,
        channels=channels,
        expansion=expansion,
        down_expansion=expansion[:4] if monai else expansion[1:5],
        blocks=blocks,
    )


MEDNEXT: dict[str, MedNeXtConfig] = {
    "tiny": TINY,
    **{f"kernel {k}": replace(TINY, encoder_kernel=k, decoder_kernel=k) for k in (1, 5, 7)},
    "two kernels": replace(TINY, encoder_kernel=3, decoder_kernel=7),
    **{f"2-D, kernel {k}": replace(TINY, spatial_dims=2, encoder_kernel=k, decoder_kernel=k) for k in (3, 5, 7)},
    "GRN": WITH_GRN,
    "GRN, 2-D": replace(WITH_GRN, spatial_dims=2),
    "GRN everywhere": replace(TINY, grn=True, down_grn=(True, True)),
    "layer norm": replace(TINY, norm="layer"),
    "layer norm, GRN, 2-D": replace(WITH_GRN, norm="layer", spatial_dims=2),
    "deep supervision": replace(TINY, deep_supervision=True),
    "deep supervision, GRN, layer norm": replace(WITH_GRN, deep_supervision=True, norm="layer"),
    "no residuals": replace(TINY, residual=False, residual_resample=False),
    "residuals in blocks only": replace(TINY, residual_resample=False),
    **{f"{n} levels": levels(n) for n in (1, 3, 5)},
    **{f"{v} as published": published(v) for v in VARIANTS},
    **{f"{v} with MONAI's ratios": published(v, monai=True) for v in VARIANTS},
}

CMUNEXT: dict[str, CMUNeXtConfig] = {
    "tiny": CMUNeXtConfig(widths=(2, 4, 4, 6, 8), depths=(1, 2, 1, 1, 3)),
    "many classes": CMUNeXtConfig(in_channels=1, classes=4, widths=(4,) * 5, depths=(2,) * 5, kernels=(9,) * 5),
    **{f"{v}, narrow": CMUNeXtConfig(3, 1, (4,) * 5, *numbers[1:]) for v, numbers in CMUNEXT_VARIANTS.items()},
}

SMALL_2D = MedNeXt2dConfig(widths=(4, 6, 8, 10), depths=(1, 2, 1, 1))
MEDNEXT2D: dict[str, MedNeXt2dConfig] = {
    "tiny": SMALL_2D,
    "classification": replace(SMALL_2D, kind="classification", classes=4),
    **{f"{name} attention": replace(SMALL_2D, attention=name) for name in ATTENTION},
    **{f"{name} encoding": replace(SMALL_2D, spatial=name) for name in SPATIAL},
    **{f"{name} feed-forward": replace(SMALL_2D, feed_forward=name) for name in FEED_FORWARD},
    "two blocks a stage": replace(SMALL_2D, depths=(2, 2, 2, 2)),
}

Config = MedNeXtConfig | CMUNeXtConfig | MedNeXt2dConfig
NETWORKS: dict[str, Mapping[str, Config]] = {"mednext": MEDNEXT, "cmunext": CMUNEXT, "mednext2d": MEDNEXT2D}
"""Every family of the registry -> the shapes in which its rewrites are proven."""


def family_of(config: Config) -> str:
    return {MedNeXtConfig: "mednext", CMUNeXtConfig: "cmunext", MedNeXt2dConfig: "mednext2d"}[type(config)]


def loaded(config: Config, seed: int = 0) -> LoadedModel:
    """The network in float64, every parameter random: biases, scales, GRN's gates and running statistics too."""
    generator = torch.Generator().manual_seed(seed)
    family = FAMILIES[family_of(config)]
    net = family.build(config.to_dict()).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            fan_in = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / fan_in**0.5)
        for name, buffer in net.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) + 0.2)
    spec = family.describe(net)
    classes = spec.labels
    task = Task(
        name="network",
        model=spec,
        preprocessing=Preprocessing(normalization=(Normalization(),) * config.in_channels),
        inference=Inference(patch=(2 * config.divisor,) * spec.spatial_dims),
        labels={f"label-{i}": i for i in range(classes)},
    )
    return LoadedModel(net, task, Source(format="random", file="none", sha256="0" * 64))


def image(config: Config, batch: int = 1, seed: int = 0) -> Tensor:
    """A random input, twice the divisor along the first axis, and the divisor along the others."""
    generator = torch.Generator().manual_seed(seed)
    spatial = (2 * config.divisor,) + (config.divisor,) * (config.spatial_dims - 1)
    return torch.randn((batch, config.in_channels, *spatial), generator=generator, dtype=torch.float64)
