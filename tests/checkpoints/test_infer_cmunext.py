"""Checkpoints of CMUNeXt: the configuration from the tensors, the authors' recipe, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mednext_edge.checkpoints import load, save
from mednext_edge.checkpoints.infer_cmunext import infer_cmunext
from mednext_edge.checkpoints.inspect import describe
from mednext_edge.errors import CheckpointError
from mednext_edge.models.cmunext import VARIANTS, CMUNeXt, CMUNeXtConfig, cmunext_config

SMALL = CMUNeXtConfig(widths=(2, 4, 4, 6, 8), depths=(1, 2, 1, 1, 2), kernels=(3, 5, 7, 3, 9))


def network(config: CMUNeXtConfig = SMALL) -> CMUNeXt:
    torch.manual_seed(0)
    return CMUNeXt(config).eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_variants_are_recognised(variant: str) -> None:
    config = cmunext_config(variant, in_channels=1, classes=9)
    with torch.device("meta"):
        found = infer_cmunext(CMUNeXt(config).state_dict())
    assert (found, found.variant) == (config, variant)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {f"module.{name}": tensor for name, tensor in s.items()},
        lambda s: {"state_dict": s, "epoch": 3},
    ],
    ids=["bare", "DataParallel", "wrapped"],
)
def test_the_authors_files_load(tmp_path: Path, wrap: Callable[[dict[str, Tensor]], object]) -> None:
    net = network()
    torch.save(wrap(net.state_dict()), tmp_path / "CMUNeXt_model_busi_train.pth")
    model = load(tmp_path / "CMUNeXt_model_busi_train.pth")
    x = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        assert torch.equal(model.net(x), net(x))
    assert model.task.labels == {"background": 0, "class_1": 1}
    assert any("authors' recipe" in note for note in model.notes)
    assert describe(tmp_path / "CMUNeXt_model_busi_train.pth").keys == "authors"


def test_the_authors_recipe_is_in_the_task(tmp_path: Path) -> None:
    """(x / 255 - mean) / sd, divided by 255 once more; ImageNet's figures in the order R, G, B on channels B, G, R."""
    torch.save(network().state_dict(), tmp_path / "model.pth")
    recipe = load(tmp_path / "model.pth").task.preprocessing
    assert (recipe.colour, recipe.size, recipe.image_order, recipe.label_order) == ("BGR", (256, 256), 1, 0)
    for entry, mean, sd in zip(recipe.normalization, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True):
        x = np.linspace(0, 255, 7)
        assert np.allclose((x - entry.mean) / entry.sd, (x / 255 - mean) / sd / 255)
        assert np.isinf([entry.lower, entry.upper]).all()


def test_other_channels_have_no_colour(tmp_path: Path) -> None:
    net = network(CMUNeXtConfig(1, 3, SMALL.widths, SMALL.depths, SMALL.kernels))
    torch.save(net.state_dict(), tmp_path / "model.pth")
    model = load(tmp_path / "model.pth")
    assert model.task.preprocessing.colour is None
    assert len(model.task.labels) == 3


def test_our_own_format_keeps_running_statistics(tmp_path: Path) -> None:
    """Variances of inputs that were divided by 255 twice are far below what float16 can hold."""
    net = network()
    for name, buffer in net.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(1e-9)
    torch.save(net.state_dict(), tmp_path / "model.pth")
    model = load(tmp_path / "model.pth")
    save(tmp_path / "ours", model)
    again = load(tmp_path / "ours")
    assert again.task == model.task
    for name, buffer in again.net.named_buffers():
        assert torch.equal(buffer, net.get_buffer(name)), name


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("encoder3.block.0.0.fn.0.weight", (4, 1, 4, 4), "odd numbers"),
        ("encoder2.block.4.1.weight", (16, 4, 1, 1), "without gaps"),
        ("encoder1.up.conv.0.weight", (2,), "expected 4 axes"),
        ("Up5.up.1.weight", (7, 8, 3, 3), "has shape"),
        ("encoder1.extra.weight", (2,), "unexpected"),
    ],
)
def test_impossible_shapes_are_refused(tmp_path: Path, name: str, shape: tuple[int, ...], message: str) -> None:
    torch.save({**network().state_dict(), name: torch.zeros(shape)}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "model.pth")


def test_other_networks_of_its_kind_are_named(tmp_path: Path) -> None:
    torch.save({"Conv1.conv.0.weight": torch.ones(1), "Up_conv5.conv.0.weight": torch.ones(1)}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="but like a U-Net of the kind of CMUNeXt, but another one"):
        load(tmp_path / "model.pth")
