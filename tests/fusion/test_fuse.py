"""The rewrites compute the same function as the network they were made from, in float64 to 1e-10."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import mednext_edge as mx
from mednext_edge.errors import UnknownNameError
from mednext_edge.fusion.batch_norm import ChannelAffine
from mednext_edge.fusion.fuse import REWRITES, fuse
from mednext_edge.models.config import mednext_config
from mednext_edge.models.families import FAMILIES
from mednext_edge.models.mednext import MedNeXt

from .networks import CMUNEXT, NETWORKS, TINY, WITH_GRN, Config, image, loaded

SHAPES = {f"{family}: {name}": config for family, shapes in NETWORKS.items() for name, config in shapes.items()}
OPTIONAL = tuple(name for name, rewrite in REWRITES.items() if rewrite.optional)
TOLERANCE = 1e-10

every_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)


def answer(net: nn.Module, x: Tensor) -> Tensor:
    """Logits at full resolution."""
    with torch.no_grad():
        out: Tensor | list[Tensor] = net(x)
    return out[0] if isinstance(out, list) else out


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute value."""
    assert found.shape == expected.shape
    assert torch.isfinite(expected).all()
    return float((found - expected).abs().max() / expected.abs().max())


def test_every_family_is_proven() -> None:
    """All that are trained; an ensemble is made of them."""
    assert set(NETWORKS) == {name for name, family in FAMILIES.items() if family.plan is not None}


@every_shape
@pytest.mark.parametrize("optional", [(), OPTIONAL], ids=["default", "with optional"])
def test_all_together(config: Config, optional: tuple[str, ...]) -> None:
    model, x = loaded(config), image(config)
    deploy = fuse(model, optional=optional)
    assert deploy.rewrites
    assert difference(answer(deploy.net, x), answer(model.net, x)) <= TOLERANCE


@pytest.mark.parametrize("name", REWRITES)
@every_shape
def test_each_alone(config: Config, name: str) -> None:
    model, x = loaded(config), image(config)
    net = copy.deepcopy(model.net)
    REWRITES[name].apply(net)
    assert difference(answer(net, x), answer(model.net, x)) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "before", "places"),
    [
        # Two levels and five stages: 5 blocks, 2 down, 2 up; three heads under deep supervision.
        ("training-parts", (), 3),
        ("plain-heads", (), 3),
        ("depthwise-bias", (), 9),
        ("norm-affine", (), 9),
        ("instance-norm", (), 0),
        ("instance-norm", ("norm-affine",), 9),
        ("parity", (), 0),
        ("parity", ("depthwise-bias",), 2),
        ("cuda-depthwise", (), 9),
        ("cuda-depthwise", ("depthwise-bias",), 9),
        ("cuda-depthwise", ("depthwise-bias", "parity"), 7),
        ("cuda-block", (), 9),
        ("cuda-block", ("norm-affine", "instance-norm", "cuda-depthwise"), 9),
    ],
)
def test_each_changes_what_it_says(name: str, before: tuple[str, ...], places: int) -> None:
    config = replace(TINY, deep_supervision=True)
    model, x = loaded(config), image(config, batch=2)
    net = copy.deepcopy(model.net)
    for other in before:
        REWRITES[other].apply(net)
    assert REWRITES[name].apply(net) == places
    assert REWRITES[name].apply(net) == 0
    assert difference(answer(net, x), answer(model.net, x)) <= TOLERANCE


def test_the_order_of_the_table_is_the_order_of_application() -> None:
    found = [fuse(loaded(shapes["tiny"]), optional=OPTIONAL).rewrites for shapes in NETWORKS.values()]
    assert set().union(*found) == set(REWRITES)
    for done in found:
        assert done == tuple(name for name in REWRITES if name in done)


def test_optional_rewrites_are_left_out_unless_named() -> None:
    assert not {*OPTIONAL} & {*fuse(loaded(TINY)).rewrites}
    assert OPTIONAL == ("parity", "cuda-depthwise", "cuda-block")


def test_of_the_batch_norms_those_in_front_of_padding_keep_scale_and_shift() -> None:
    """Five encoders of 1, 2, 1, 1 and 3 units; four stages of the decoder, the last of which has no padding behind."""
    model = loaded(CMUNEXT["tiny"])
    units, stages = 8, 4
    net = copy.deepcopy(model.net)
    # Convolution in front: the stem, the end of each encoder, and each upsampling.
    assert REWRITES["norm-behind"].apply(net) == 1 + 5 + stages
    # 1x1 behind: in the middle of each unit and in its residual sum; twice in each stage, and in front of the head.
    assert REWRITES["norm-ahead"].apply(net) == 2 * units + 2 * stages + 1
    # A padded convolution behind: the end of each unit, and of each stage but the last.
    assert REWRITES["norm-left"].apply(net) == units + stages - 1
    assert not [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    left = [module.shift is not None for module in net.modules() if isinstance(module, ChannelAffine)]
    assert (left.count(True), left.count(False)) == (units + stages - 1, units)


def test_folding_a_shift_into_a_padded_convolution_would_change_the_borders() -> None:
    """Why some BatchNorms stay: zero padding is not the shift, and only the inside would come out right."""
    conv, shift = nn.Conv2d(2, 2, 3, padding=1).double(), torch.tensor([0.5, -1.0], dtype=torch.float64)
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        exact = conv(x + shift.view(-1, 1, 1))
        folded = conv(x) + (conv.weight.sum((2, 3)) @ shift).view(-1, 1, 1)
    assert difference(folded[..., 1:-1, 1:-1], exact[..., 1:-1, 1:-1]) <= TOLERANCE
    assert difference(folded, exact) > 1e-2


def test_layer_norm_keeps_its_depthwise_bias() -> None:
    """LayerNorm averages over channels, so a bias of one channel does not cancel."""
    deploy = fuse(loaded(replace(TINY, norm="layer")), optional=OPTIONAL)
    assert set(deploy.rewrites) == {"training-parts", "plain-heads", "norm-affine", "cuda-depthwise"}
    assert sum(name.endswith("conv1.bias") for name in deploy.net.state_dict()) == 9


@pytest.mark.parametrize("config", [TINY, replace(WITH_GRN, deep_supervision=True)], ids=["tiny", "GRN and heads"])
def test_the_model_given_is_not_touched(config: Config) -> None:
    model, x = loaded(config), image(config)
    names, before = list(model.net.state_dict()), copy.deepcopy(model.net.state_dict())
    expected = answer(model.net, x)
    modules = [type(module) for module in model.net.modules()]
    fuse(model, optional=OPTIONAL)
    assert model.rewrites == ()
    assert list(model.net.state_dict()) == names
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.net.state_dict().items())
    assert [type(module) for module in model.net.modules()] == modules
    assert all(parameter.requires_grad for parameter in model.net.parameters())
    assert isinstance(model.net, MedNeXt)
    assert model.net.do_ds == config.deep_supervision
    assert model.net.config == config
    assert torch.equal(answer(model.net, x), expected)


def test_twice_is_once() -> None:
    model, x = loaded(replace(WITH_GRN, deep_supervision=True)), image(WITH_GRN)
    once = fuse(model, optional=OPTIONAL)
    twice = fuse(once, optional=OPTIONAL)
    assert twice.rewrites == once.rewrites
    assert list(twice.net.state_dict()) == list(once.net.state_dict())
    assert torch.equal(answer(twice.net, x), answer(once.net, x))


def test_optional_rewrites_can_be_added_later() -> None:
    model, x = loaded(TINY), image(TINY)
    deploy = fuse(fuse(model), optional=OPTIONAL)
    assert deploy.rewrites == fuse(model, optional=OPTIONAL).rewrites
    assert {*OPTIONAL} <= {*deploy.rewrites}
    assert difference(answer(deploy.net, x), answer(model.net, x)) <= TOLERANCE


def test_unknown_optional_rewrite_names_the_closest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown rewrite `paritty`. Did you mean `parity`\?"):
        fuse(loaded(TINY), optional=("paritty",))


def test_task_and_source_travel_along() -> None:
    model = loaded(replace(TINY, deep_supervision=True))
    deploy = mx.fuse(model)
    assert (deploy.task, deploy.source, deploy.notes) == (model.task, model.source, model.notes)
    assert not deploy.net.training
    assert not any(parameter.requires_grad for parameter in deploy.net.parameters())


@pytest.mark.parametrize("optional", [(), OPTIONAL], ids=["default", "with optional"])
def test_the_deploy_form_holds_no_more_than_it_needs(optional: tuple[str, ...]) -> None:
    config = replace(WITH_GRN, deep_supervision=True)
    deploy = fuse(loaded(config), optional=optional)
    names = list(deploy.net.state_dict())
    assert [name for name in names if name.startswith("out_")] == ["out_0.conv_out.weight", "out_0.conv_out.bias"]
    assert not [name for name in names if "dummy" in name or ".norm." in name or name.endswith("conv1.bias")]
    grouped = [m for m in deploy.net.modules() if isinstance(m, nn.GroupNorm)]
    transposed = [n for n, m in deploy.net.named_modules() if isinstance(m, nn.ConvTranspose3d)]
    assert not grouped
    assert all(name.endswith("res_conv") for name in transposed if optional), transposed
    assert not [name for name in transposed if name.startswith("out_")]
    assert isinstance(answer(deploy.net, image(config)), Tensor)


def test_a_training_net_becomes_an_evaluating_one() -> None:
    model = loaded(replace(TINY, deep_supervision=True))
    model.net.train()
    deploy = fuse(model)
    assert isinstance(deploy.net(image(TINY)), Tensor)
    assert model.net.training


def test_statistics_of_the_norm_are_those_of_each_sample() -> None:
    """A batch gives what its samples give alone."""
    deploy, x = fuse(loaded(TINY)), image(TINY, batch=3)
    together = answer(deploy.net, x)
    apart = torch.cat([answer(deploy.net, x[i : i + 1]) for i in range(3)])
    assert difference(together, apart) <= TOLERANCE


@pytest.mark.parametrize("optional", [(), OPTIONAL], ids=["default", "with optional"])
def test_small_with_kernel_3_in_full_size(optional: tuple[str, ...]) -> None:
    config = mednext_config("S", classes=3, deep_supervision=True)
    model = loaded(config)
    x = torch.randn((1, 1, 32, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert difference(answer(fuse(model, optional=optional).net, x), answer(model.net, x)) <= TOLERANCE
