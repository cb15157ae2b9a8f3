"""CMUNeXt against the authors' key list, numeric fingerprints and published sizes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mednext_edge.errors import UnknownNameError, UsageError
from mednext_edge.models.cmunext import CMUNeXt, CMUNeXtConfig, cmunext_config
from mednext_edge.models.families import FAMILIES, build

HERE = Path(__file__).parent


def fill(net: nn.Module) -> None:
    """Weights that a formula gives, as in `test_mednext`; running variances are 1 + s^2 / 2."""
    for j, (key, tensor) in enumerate(sorted(net.state_dict().items())):
        s = torch.sin(0.37 * torch.arange(tensor.numel(), dtype=torch.float64) + 0.11 * j).reshape(tensor.shape)
        if key.endswith("num_batches_tracked"):
            tensor.zero_()
        elif key.endswith("running_var"):
            tensor.copy_(1 + 0.5 * s**2)
        elif tensor.dim() <= 1:
            tensor.copy_(1 + 0.1 * s if key.endswith("weight") else 0.1 * s)
        else:
            tensor.copy_(s / math.sqrt(tensor.numel() / tensor.shape[0]))


@pytest.mark.parametrize("variant", ["S", "base"])
def test_fingerprint(variant: str) -> None:
    net = CMUNeXt(cmunext_config(variant)).double().eval()
    fill(net)
    x = torch.sin(0.013 * torch.arange(3 * 64 * 64, dtype=torch.float64)).reshape(1, 3, 64, 64)
    with torch.no_grad():
        output = net(x)
    golden: list[dict[str, Any]] = json.loads((HERE / "golden.json").read_text())[f"cmunext-{variant}"]
    (expected,) = golden
    flat = output.flatten()
    found = [flat.sum().item(), flat.abs().sum().item(), *flat[:4].tolist(), flat[-1].item()]
    assert list(output.shape) == expected["shape"]
    assert found == pytest.approx(
        [expected["sum"], expected["abssum"], *expected["first"], expected["last"]], rel=1e-9, abs=1e-9
    )


def test_keys_and_shapes_are_the_authors() -> None:
    lines = (HERE / "cmunext_base.txt").read_text().splitlines()
    expected = [tuple(line.split(" ", 1)) for line in lines if line]
    with torch.device("meta"):
        found = CMUNeXt(cmunext_config("base")).state_dict()
    assert [(name, str(tuple(tensor.shape))) for name, tensor in found.items()] == expected


@pytest.mark.parametrize(
    ("variant", "parameters", "buffers", "keys"),
    [("S", 417_505, 4_005, 261), ("base", 3_149_185, 13_931, 303), ("L", 8_286_721, 29_754, 408)],
)
def test_published_sizes(variant: str, parameters: int, buffers: int, keys: int) -> None:
    with torch.device("meta"):
        net = CMUNeXt(cmunext_config(variant))
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert sum(b.numel() for b in net.buffers()) == buffers
    assert len(net.state_dict()) == keys


@pytest.mark.parametrize(("channels", "classes", "parameters"), [(1, 1, 3_148_897), (3, 9, 3_149_321)])
def test_other_channels_and_classes(channels: int, classes: int, parameters: int) -> None:
    with torch.device("meta"):
        net = CMUNeXt(cmunext_config("b", in_channels=channels, classes=classes))
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_describe_and_build_are_inverse() -> None:
    config = CMUNeXtConfig(in_channels=1, classes=4, widths=(4,) * 5, depths=(1,) * 5, kernels=(3, 3, 5, 7, 9))
    spec = FAMILIES["cmunext"].describe(CMUNeXt(config))
    assert (spec.family, spec.variant, spec.kernel_size, spec.spatial_dims) == ("cmunext", "custom", 9, 2)
    net = build(spec)
    assert isinstance(net, CMUNeXt)
    assert net.config == config
    assert FAMILIES["cmunext"].divisor(spec) == 16
    assert (spec.labels, spec.output_shape((32, 48))) == (4, (4, 32, 48))


@pytest.mark.parametrize(
    "fields", [{"widths": (4, 4)}, {"kernels": (3, 3, 4, 3, 3)}, {"classes": 0}, {"depths": (0,) * 5}]
)
def test_impossible_configurations(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        CMUNeXtConfig(**fields)


def test_unknown_variant_names_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean `base`"):
        cmunext_config("bas")
