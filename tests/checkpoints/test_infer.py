"""A configuration from tensor names and shapes alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mednext_edge.checkpoints.infer import infer_config
from mednext_edge.checkpoints.state import network_weights
from mednext_edge.errors import CheckpointError
from mednext_edge.models.config import VARIANTS, MedNeXtConfig, mednext_config
from mednext_edge.models.mednext import MedNeXt
from tests.checkpoints.writers import SMALL, network


def shapes(config: MedNeXtConfig) -> dict[str, Tensor]:
    """Its state_dict on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return MedNeXt(config).state_dict()


@st.composite
def configs(draw: st.DrawFn) -> MedNeXtConfig:
    levels = draw(st.integers(1, 5))
    stages, counts = 2 * levels + 1, st.integers(1, 3)
    kernels = st.sampled_from([1, 3, 5, 7])
    return MedNeXtConfig(
        in_channels=draw(st.integers(1, 5)),
        classes=draw(st.integers(1, 20)),
        spatial_dims=draw(st.sampled_from([2, 3])),
        channels=draw(st.integers(1, 33)),
        expansion=tuple(draw(st.integers(1, 9)) for _ in range(stages)),
        down_expansion=tuple(draw(st.integers(1, 9)) for _ in range(levels)),
        blocks=tuple(draw(counts) for _ in range(stages)),
        encoder_kernel=draw(kernels),
        decoder_kernel=draw(kernels),
        residual_resample=draw(st.booleans()),
        grn=draw(st.booleans()),
        down_grn=tuple(draw(st.booleans()) for _ in range(levels)),
        deep_supervision=draw(st.booleans()),
    )


@given(configs())
@settings(max_examples=40, deadline=None)
def test_every_traceable_number_comes_back(config: MedNeXtConfig) -> None:
    found, notes = infer_config(shapes(config), "mic")
    assert found == config
    assert any("norm" in note for note in notes)
    assert any("residual" in note for note in notes)


@given(configs())
@settings(max_examples=20, deadline=None)
def test_and_under_monai_names(config: MedNeXtConfig) -> None:
    found, notes = infer_config(shapes(config), "monai")
    # MONAI has one switch for all residuals, so that the down blocks tell of the ordinary ones.
    assert found == replace(config, residual=config.residual_resample)
    assert not any("residual" in note for note in notes)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kernel", [3, 5])
def test_published_variants_are_recognised(variant: str, kernel: int) -> None:
    config = mednext_config(variant, classes=14, kernel=kernel, deep_supervision=True)
    found, _ = infer_config(shapes(config), "mic")
    assert (found, found.variant, found.encoder_kernel) == (config, variant, kernel)
    assert found.layout == ("both" if variant == "S" else "mic")


def test_flags_without_a_trace_are_assumed() -> None:
    found, _ = infer_config(shapes(replace(SMALL, norm="layer", residual=False)), "mic")
    assert (found.norm, found.residual) == ("group", True)


def test_another_network_is_named() -> None:
    state = {"encoder.stages.0.0.convs.0.conv.weight": torch.ones(1), "decoder.transpconvs.0.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"a MedNeXt or a CMUNeXt but like an nnU-Net v2 .*encoder\.stages"):
        network_weights(state)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("stem.weight", (4, 1), "stem.weight has shape"),
        ("enc_block_0.0.conv2.weight", (9, 4, 1, 1, 1), "whole multiple"),
        ("bottleneck.0.conv1.weight", (16, 1, 4, 4, 4), "odd number"),
        ("bottleneck.2.conv1.weight", (16, 1, 3, 3, 3), "without gaps"),
        ("down_7.conv1.weight", (4, 1, 3, 3, 3), "without gaps"),
    ],
)
def test_impossible_shapes_are_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        infer_config({**network().state_dict(), name: torch.zeros(shape)}, "mic")
