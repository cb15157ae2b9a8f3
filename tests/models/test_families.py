"""The table of network families: each entry describes, rebuilds and refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mednext_edge.errors import CheckpointError, UnknownNameError
from mednext_edge.models.config import MedNeXtConfig, mednext_config
from mednext_edge.models.families import FAMILIES, build, describe_mednext
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.task import ModelSpec


def spec(config: MedNeXtConfig) -> ModelSpec:
    with torch.device("meta"):
        return describe_mednext(MedNeXt(config))


def test_describe_and_build_are_inverse() -> None:
    config = replace(mednext_config("S", in_channels=2, classes=4, kernel=5, spatial_dims=2), channels=4)
    described = spec(config)
    assert (described.in_channels, described.classes, described.spatial_dims) == (2, 4, 2)
    assert (described.family, described.variant, described.kernel_size) == ("mednext", "custom", 5)
    net = build(ModelSpec.model_validate_json(described.model_dump_json()))
    assert isinstance(net, MedNeXt)
    assert net.config == config
    assert described.parameters == sum(p.numel() for p in net.parameters())
    assert FAMILIES["mednext"].divisor(described) == 16


def test_unknown_family_names_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean `mednext`"):
        build(spec(MedNeXtConfig(channels=4)).model_copy(update={"family": "mednet"}))


@pytest.mark.parametrize("config", [{"kernel": 3}, {"blocks": 7}, {"encoder_kernel": 2}])
def test_configuration_that_cannot_be_built(config: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match="cannot be built"):
        build(spec(MedNeXtConfig(channels=4)).model_copy(update={"config": config}))
