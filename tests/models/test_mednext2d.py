"""The 2-D MedNeXt: shapes, sizes, its modules one by one, and that each of them can be swapped."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from mednext_edge.errors import UnknownNameError, UsageError
from mednext_edge.models.families import FAMILIES, Request, build, plan_spec
from mednext_edge.models.mednext2d import VARIANTS, MedNeXt2d, MedNeXt2dConfig, mednext2d_config
from mednext_edge.models.modules2d import ATTENTION, FEED_FORWARD, SPATIAL, LinearAttention

SMALL = MedNeXt2dConfig(widths=(4, 6, 8, 10), depths=(1, 2, 1, 1))
# Parameters for 3 channels and 2 classes, of a segmentation and of a classification.
PARAMETERS = {
    "tiny": (3_121_735, 2_806_791),
    "small": (7_996_952, 7_300_280),
    "base": (21_223_628, 19_995_724),
}


@pytest.mark.parametrize("kind", ["segmentation", "classification"])
@pytest.mark.parametrize("classes", [1, 5])
def test_answers(kind: Any, classes: int) -> None:
    net = MedNeXt2d(replace(SMALL, kind=kind, classes=classes)).eval()
    spec = FAMILIES["mednext2d"].describe(net)
    with torch.no_grad():
        found = net(torch.randn(2, 3, 64, 96))
    assert found.shape == (2, *spec.output_shape((64, 96)))
    assert (spec.kind, spec.variant, FAMILIES["mednext2d"].divisor(spec)) == (kind, "custom", 32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sizes(variant: str) -> None:
    for kind, expected in zip(("segmentation", "classification"), PARAMETERS[variant], strict=True):
        with torch.device("meta"):
            net = MedNeXt2d(mednext2d_config(variant, kind=kind))  # type: ignore[arg-type]
        spec = FAMILIES["mednext2d"].describe(net)
        assert (spec.variant, spec.parameters) == (variant, expected)


@pytest.mark.parametrize(
    "changes",
    [
        *({"attention": name} for name in ATTENTION),
        *({"spatial": name} for name in SPATIAL),
        *({"feed_forward": name} for name in FEED_FORWARD),
    ],
    ids=str,
)
def test_every_module_can_be_swapped_and_trains(changes: dict[str, str]) -> None:
    config = replace(SMALL, **changes)
    net = build(FAMILIES["mednext2d"].describe(MedNeXt2d(config)))
    assert isinstance(net, MedNeXt2d)
    assert net.config == config
    net(torch.randn(1, 3, 64, 64)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_linear_attention_is_the_published_formula() -> None:
    torch.manual_seed(0)
    module = LinearAttention(6).double().eval()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    normed = F.group_norm(x, 1, module.qkv[0].weight, module.qkv[0].bias)
    mixed = torch.einsum("oc,nchw->nohw", module.qkv[1].weight[:, :, 0, 0], normed)
    mixed = mixed + module.qkv[1].bias.view(-1, 1, 1)
    expected = torch.zeros_like(x)
    for n in range(2):
        shares = mixed[n, 0].exp() / mixed[n, 0].exp().sum()
        context = (mixed[n, 1:7] * shares).sum((1, 2))
        expected[n] = mixed[n, 7:].relu() * context.view(-1, 1, 1)
    expected = x + module.out(expected)
    expected = expected + module.mlp(expected)
    assert torch.allclose(module(x), expected, rtol=1e-12)


def test_half_precision_keeps_small_shares() -> None:
    """Over 16,384 pixels each share is below what float16 can add up."""
    torch.manual_seed(0)
    module = LinearAttention(4).eval()
    x = torch.randn(1, 4, 128, 128)
    with torch.no_grad():
        exact = module(x)
        half = module.half()(x.half()).float()
    assert float((half - exact).abs().max() / exact.abs().max()) < 5e-3


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"widths": (4, 4)}, UsageError, "expected 4 numbers"),
        ({"widths": (3, 4, 4, 4)}, UsageError, "even"),
        ({"kind": "detection"}, UnknownNameError, "kind of network"),
        ({"attention": "lineer"}, UnknownNameError, "Did you mean `linear`"),
    ],
)
def test_impossible_configurations(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MedNeXt2dConfig(**fields)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("cmunext", {"spatial_dims": 3}, "spatial dims 3 .* cmunext; expected 2"),
        ("cmunext", {"kind": "classification"}, "kind classification"),
        ("cmunext", {"kernel": 5}, "kernel 5"),
        ("mednext2d", {"grn": True}, "grn True"),
        ("mednext", {"kind": "classification"}, "expected segmentation"),
        ("ensemble", {}, "is not trained itself"),
    ],
)
def test_what_a_family_does_not_have(family: str, changes: dict[str, Any], message: str) -> None:
    request = Request(kind="segmentation", variant=None, in_channels=3, labels=2, spatial_dims=2)
    with pytest.raises(UsageError, match=message):
        plan_spec(family, replace(request, **changes))


def test_families_plan_what_is_asked_for() -> None:
    request = Request(kind="segmentation", variant=None, in_channels=1, labels=2, spatial_dims=2)
    assert plan_spec("cmunext", request).classes == 1
    assert plan_spec("cmunext", replace(request, labels=4)).classes == 4
    assert plan_spec("mednext", request).spatial_dims == 2
    found = plan_spec("mednext2d", replace(request, kind="classification", labels=3, variant="small"))
    assert (found.kind, found.classes, found.variant) == ("classification", 3, "small")
    assert math.isfinite(found.parameters)
