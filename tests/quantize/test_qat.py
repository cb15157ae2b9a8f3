"""A network that is trained in INT8 computes what its graph computes."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mednext_edge.errors import ExportError
from mednext_edge.export.graph import to_onnx
from mednext_edge.fusion import fuse
from mednext_edge.fusion.neutral import neutralize
from mednext_edge.models.loaded import LoadedModel, Quantization
from mednext_edge.quantize.flavour import CPU, NVIDIA, Flavour
from mednext_edge.quantize.kinds import layers
from mednext_edge.quantize.observe import open_graph
from mednext_edge.quantize.plan import Plan
from mednext_edge.quantize.qat import attach, learnt, learnt_plan, quantization_of
from tests.fusion.networks import CMUNEXT, MEDNEXT2D, NETWORKS, Config, image, loaded
from tests.quantize.networks import FLAT, WIDE, WITH_GRN, collect, noise

CONFIGS: dict[str, Config] = {
    "group norm": WIDE,
    "GRN": WITH_GRN,
    "layer norm": replace(WIDE, norm="layer"),
    "2-D": FLAT,
    "CMUNeXt": CMUNEXT["S, narrow"],
    "2-D MedNeXt": MEDNEXT2D["classification"],
}
EVERY = {f"{family}, {name}": config for family, found in NETWORKS.items() for name, config in found.items()}


def patch_of(config: Config) -> tuple[int, ...]:
    return (max(8, config.divisor),) * config.spatial_dims


def first(outputs: Tensor | list[Tensor]) -> Tensor:
    return outputs[0] if isinstance(outputs, list) else outputs


def start(config: Config) -> tuple[LoadedModel, nn.Module, Quantization]:
    """A model, its neutral copy with quantisers, and where these start."""
    model = loaded(config)
    model.net.float()
    patch = patch_of(config)
    deploy = fuse(model, optional=("parity",))
    chosen = {layer.name: layer for layer in layers(deploy.net) if layer.quantizable}
    ranges = collect(to_onnx(deploy, patch), chosen.values(), noise(config, patch))
    quantization = quantization_of(Plan(chosen, ranges, CPU))
    net = copy.deepcopy(model.net).eval()
    neutralize(net)
    attach(net, quantization)
    return model, net, quantization


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_logits_are_those_of_the_graph(config: Config) -> None:
    """Far nearer than INT8 is to float: a number on the edge of two levels may fall on either side."""
    model, net, quantization = start(config)
    state, found = learnt(net, quantization)
    again = copy.deepcopy(model.net)
    again.load_state_dict(state)
    deploy = fuse(replace(model, net=again), optional=("parity",))
    patch = patch_of(config)
    graph = to_onnx(deploy, patch)
    exact, int8 = open_graph(graph), open_graph(learnt_plan(deploy.net, found, CPU).apply(graph))
    between, beside, square = 0.0, 0.0, 0.0
    for x in noise(config, patch, count=6, seed=7).patches:
        with torch.no_grad():
            mine = first(net(torch.from_numpy(x))).double().numpy()
        theirs, plain = (g.run(None, {"image": x})[0].astype(np.float64) for g in (int8, exact))
        between += float(np.square(mine - theirs).sum())
        beside += float(np.square(theirs - plain).sum())
        square += float(np.square(plain).sum())
    assert beside > 1e-5 * square, "nothing was quantised"
    assert between < 0.6 * beside


@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY)
def test_neutral_norms_change_nothing_and_fusing_them_no_weight(config: Config) -> None:
    model = loaded(config)
    net = copy.deepcopy(model.net)
    neutralize(net)
    net.train()
    if hasattr(net, "do_ds"):
        net.do_ds = False
    x = image(config)
    with torch.no_grad():
        expected, found = first(model.net(x)), first(net(x))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert frozen

    single = copy.deepcopy(model.net).float()
    assert not single.load_state_dict(net.state_dict()).missing_keys
    fused = fuse(replace(model, net=single)).net
    for name, module in single.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            assert torch.equal(fused.get_submodule(name).get_parameter("weight"), module.weight), name


def test_every_quantiser_and_every_weight_learns() -> None:
    _, net, quantization = start(WIDE)
    first(net.train()(torch.randn(1, 2, 8, 8, 8))).square().mean().backward()
    for name in quantization.thresholds:
        shift = net.get_submodule(f"{name}.input_quantizer").get_parameter("shift")
        assert shift.grad is not None and torch.isfinite(shift.grad)
    weights = [p for name, p in net.named_parameters() if name.endswith("weight.original")]
    assert weights and all(p.grad is not None and p.grad.abs().sum() > 0 for p in weights)


def test_what_is_learnt_has_the_names_of_the_network() -> None:
    model, net, quantization = start(WIDE)
    name = "enc_block_0.0.conv2"
    with torch.no_grad():
        net.get_submodule(f"{name}.input_quantizer").get_parameter("shift").fill_(0.01)
    state, found = learnt(net, quantization)
    assert set(state) == set(model.net.state_dict())
    assert found.thresholds[name] == pytest.approx(2 * quantization.thresholds[name])
    assert found.weight_levels == CPU.weight_levels


def test_a_target_takes_the_layers_that_it_wants() -> None:
    model, _, quantization = start(WIDE)
    plan = learnt_plan(fuse(model).net, quantization, NVIDIA)
    assert {plan.layers[name].kind for name in plan.ranges} == {"pointwise"}
    assert plan.flavour.weight_levels == CPU.weight_levels


def test_layers_that_were_not_trained_are_refused() -> None:
    model, _, quantization = start(WIDE)
    few = quantization.model_copy(update={"thresholds": {"stem": 1.0}})
    with pytest.raises(ExportError, match="pointwise was; give --int8-layers"):
        learnt_plan(fuse(model).net, few, Flavour(("pointwise",)))
