"""MONAI's names and the authors', against MONAI's own class."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mednext_edge.checkpoints.infer import infer_config
from mednext_edge.checkpoints.keys import from_monai, layout_of, to_monai
from mednext_edge.models.config import MedNeXtConfig, mednext_config
from mednext_edge.models.mednext import MedNeXt
from tests.checkpoints.writers import SMALL, network


def monai_net(**changes: Any) -> torch.nn.Module:
    """MONAI's own MedNeXt in float64, every tensor random (GRN starts at zero otherwise)."""
    from monai.networks.nets import MedNeXt as MonaiMedNeXt

    arguments = {
        "init_filters": 4,
        "in_channels": 2,
        "out_channels": 3,
        "kernel_size": 3,
        "deep_supervision": True,
        "use_residual_connection": True,
        "blocks_down": (1, 1, 1, 1),
        "blocks_bottleneck": 1,
        "blocks_up": (1, 1, 1, 1),
    } | changes
    torch.manual_seed(0)
    net: torch.nn.Module = MonaiMedNeXt(**arguments).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


CASES: dict[str, dict[str, Any]] = {
    "S-like": {},
    "S-like with two blocks": {"blocks_down": (2, 2, 2, 2), "blocks_up": (2, 2, 2, 2), "blocks_bottleneck": 2},
    "B-like": {
        "encoder_expansion_ratio": (2, 3, 4, 4),
        "decoder_expansion_ratio": (4, 4, 3, 2),
        "bottleneck_expansion_ratio": 4,
    },
    "M-like": {"blocks_down": (3, 4, 1, 1), "blocks_up": (1, 1, 4, 3), "encoder_expansion_ratio": (2, 3, 4, 4)},
    "GRN": {"global_resp_norm": True},
    "without residuals": {"use_residual_connection": False},
    "without deep supervision": {"deep_supervision": False},
    "2-D, kernel 5": {"spatial_dims": 2, "kernel_size": 5},
    "two levels": {"blocks_down": (1, 2), "blocks_up": (1, 1)},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_monai_weights_give_monai_outputs(changes: dict[str, Any]) -> None:
    theirs = monai_net(**changes).train()
    config, _ = infer_config(from_monai(theirs.state_dict()), "monai")
    ours = MedNeXt(config).double()
    ours.load_state_dict(from_monai(theirs.state_dict()))
    x = torch.randn((1, 2) + (32,) * config.spatial_dims, dtype=torch.float64)
    with torch.no_grad():
        expected, found = theirs(x), ours(x)
    expected = list(expected) if config.deep_supervision else [expected]
    found = found if config.deep_supervision else [found]
    assert len(found) == len(expected) == (config.levels + 1 if config.deep_supervision else 1)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_monai_names_survive_the_way_there_and_back(changes: dict[str, Any]) -> None:
    state = monai_net(**changes).state_dict()
    back = to_monai(from_monai(state))
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("levels", [1, 2, 3, 5])
def test_authors_names_survive_the_way_there_and_back(levels: int) -> None:
    config = MedNeXtConfig(
        channels=2,
        blocks=(1,) * (2 * levels + 1),
        expansion=(1,) * (2 * levels + 1),
        down_expansion=(1,) * levels,
        down_grn=(False,) + (True,) * (levels - 1),
        grn=True,
        deep_supervision=True,
    )
    state = network(config).state_dict()
    back = from_monai(to_monai(state))
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_dummy_tensor_is_dropped_and_made_again() -> None:
    state = network().state_dict()
    monai = to_monai(state)
    assert "dummy_tensor" not in monai
    again = from_monai(monai)
    assert next(iter(again)) == "dummy_tensor"
    assert torch.equal(again["dummy_tensor"], torch.ones(1))


def test_stock_factories_differ_by_the_down_rule_alone() -> None:
    from monai.networks.nets.mednext import create_mednext

    with torch.device("meta"):
        theirs = create_mednext("B", in_channels=1, out_channels=14, deep_supervision=True).state_dict()
    config, _ = infer_config(from_monai(theirs), "monai")
    assert config == mednext_config("B", classes=14, deep_supervision=True, layout="monai")
    assert config.layout == "monai"
    assert config.down_expansion == (2, 3, 4, 4)
    with torch.device("meta"):
        mic = MedNeXt(mednext_config("B", classes=14, deep_supervision=True)).state_dict()
    converted = from_monai(theirs)
    differing = {name for name in mic if mic[name].shape != converted[name].shape}
    assert set(mic) == set(converted)
    assert {name.split(".")[0] for name in differing} == {"down_0", "down_1"}


def test_layouts_are_told_apart() -> None:
    state = network(SMALL).state_dict()
    assert layout_of(state) == "mic"
    assert layout_of(to_monai(state)) == "monai"
    assert layout_of({"encoder.stages.0.0.convs.0.conv.weight": torch.ones(1)}) is None
    assert layout_of({"stem.weight": torch.ones(1), "blocks.0.weight": torch.ones(1)}) is None
