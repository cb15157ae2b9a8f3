"""Streams and norms' inputs without outlier channels: the same function, and less error in INT8."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from mednext_edge.export.graph import to_onnx
from mednext_edge.fusion import fuse
from mednext_edge.models.config import MedNeXtConfig
from mednext_edge.models.loaded import LoadedModel, Quantization
from mednext_edge.models.mednext import Block, MedNeXt
from mednext_edge.quantize.equalise import DWARFED, NAME, Stream, equalise, norm_inputs, octaves_of, scale, streams
from mednext_edge.quantize.flavour import CPU
from mednext_edge.quantize.observe import open_graph
from mednext_edge.quantize.ptq import calibrate
from tests.fusion.networks import loaded
from tests.quantize.networks import WIDE, noise
from tests.quantize.outliers import with_outliers

PATCH = (16, 16, 16)
BASE = replace(WIDE, residual_resample=True)
CONFIGS: dict[str, MedNeXtConfig] = {
    "residual": BASE,
    "no residual where sizes change": replace(WIDE, residual_resample=False),
    "no residual at all": replace(WIDE, residual=False, residual_resample=False),
    "layer norm and GRN": replace(BASE, norm="layer", grn=True, down_grn=(True,) * BASE.levels),
    "2-D": replace(BASE, spatial_dims=2),
    "supervised": replace(BASE, deep_supervision=True),
}


def shaken(
    config: MedNeXtConfig, places: Callable[[MedNeXt], Iterator[Stream]]
) -> tuple[MedNeXt, MedNeXt, list[Stream]]:
    """A network, the same with channels scaled at random in all of these places, and the places."""
    torch.manual_seed(0)
    net = MedNeXt(config).eval()
    other = copy.deepcopy(net)
    found = list(places(other))
    for place in found:
        channels = other.get_submodule(place.writers[0]).weight.shape[0]
        scale(other, place, torch.randint(-6, 7, (channels,), dtype=torch.float64))
    return net, other, found


@pytest.mark.parametrize("name", CONFIGS)
def test_the_network_s_numbers_stay_bit_for_bit(name: str) -> None:
    config = CONFIGS[name]
    net, other, found = shaken(config, streams)
    assert len(found) == config.levels + 1
    x = torch.randn(1, config.in_channels, *(32,) * config.spatial_dims)
    with torch.inference_mode():
        expected, answer = net(x), other(x)
    pairs = zip(expected, answer, strict=True) if config.deep_supervision else [(expected, answer)]
    assert all(torch.equal(a, b) for a, b in pairs)
    # Every residual sum has changed all the same.
    assert not torch.equal(net.stem.weight, other.stem.weight)


@pytest.mark.parametrize("name", CONFIGS)
def test_norms_take_factors_out_but_for_their_eps(name: str) -> None:
    config = CONFIGS[name]
    net, other, found = shaken(config, norm_inputs)
    assert len(found) == (0 if config.norm == "layer" else sum(isinstance(m, Block) for m in net.modules()))
    for each in (net, other):
        each.do_ds = False
        for module in each.double().modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.eps = 1e-20
    x = torch.randn(1, config.in_channels, *(32,) * config.spatial_dims, dtype=torch.float64)
    with torch.inference_mode():
        expected, answer = net(x), other(x)
    assert (expected - answer).abs().max() < 1e-9 * expected.abs().max()
    assert not found or not torch.equal(net.enc_block_0[0].conv1.weight, other.enc_block_0[0].conv1.weight)


def test_channels_whose_variance_does_not_dwarf_the_eps_stay() -> None:
    """Two channels 64 times as large as the others: one falls to them, one only as far as its norm cannot tell."""
    torch.manual_seed(0)
    model = loaded(BASE)
    model.net.float()
    calibration = noise(BASE, PATCH, count=1)
    conv = model.net.get_submodule("enc_block_0.0.conv1")
    norm = model.net.get_submodule("enc_block_0.0.norm")
    with torch.no_grad():
        conv.weight[:2] *= 64
    place = len(list(streams(model.net)))  # type: ignore[arg-type]
    assert [octaves_of(model, calibration)[place][c] <= -5 for c in (0, 1)] == [True, True]
    seen: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].var((0, 2, 3, 4), correction=0)))
    with torch.inference_mode():
        model.net(torch.from_numpy(calibration.patches[0]))
    norm.eps = float(seen[0][0] / 8 / DWARFED)  # room for an octave and a half
    after = octaves_of(model, calibration)[place]
    assert after[0] == -1
    assert not any(after[2:]), "small ones have no room at all"


def test_every_convolution_that_takes_part_is_in_a_stream() -> None:
    net = MedNeXt(CONFIGS["supervised"])
    writers = [name for stream in streams(net) for name in stream.writers]
    readers = [name for stream in streams(net) for name in stream.readers]
    assert len(writers) == len(set(writers)) and len(readers) == len(set(readers))
    convolutions = {name for name, module in net.named_modules() if hasattr(module, "groups")}
    heads = {name for name in convolutions if name.startswith("out_")}
    assert set(writers) == {n for n in convolutions - heads if not n.endswith(("conv1", "conv2"))}
    # The shortcuts of blocks that change the size read one stream and write another.
    shortcuts = {n for n in convolutions if n.endswith("res_conv")}
    assert set(readers) == {n for n in convolutions if n.endswith("conv1")} | heads | shortcuts


def int8_error(model: LoadedModel) -> float:
    calibration = noise(BASE, PATCH, count=2)
    deploy = fuse(model, optional=("parity",))
    graph = to_onnx(deploy, PATCH)
    plan = calibrate(graph, deploy.net, calibration, CPU)
    exact, found = (
        open_graph(g).run(None, {"image": calibration.patches[0]})[0].astype(np.float64)
        for g in (graph, plan.apply(graph))
    )
    return float(((found - exact) ** 2).sum() / (exact**2).sum())


def test_outliers_cost_int8_nothing_once_they_are_scaled() -> None:
    model = loaded(BASE)
    model.net.float()
    calibration = noise(BASE, PATCH, count=2)
    hard = with_outliers(model, factor=256.0)
    eased = equalise(hard, calibration)
    assert eased.rewrites == (NAME,)
    assert min(octaves_of(hard, calibration)[0]) == -8
    x = torch.from_numpy(calibration.patches[0])
    with torch.inference_mode():
        expected, answer = hard.net(x), eased.net(x)
    assert (expected - answer).abs().max() < 1e-3 * expected.abs().max()
    easy = int8_error(equalise(model, calibration))
    assert int8_error(hard) > 10 * easy
    assert int8_error(eased) < 1.5 * easy


def test_what_is_equal_already_stays(tiny_model: LoadedModel) -> None:
    calibration = noise(tiny_model.net.config, PATCH, count=1)  # type: ignore[arg-type]
    once = equalise(tiny_model, calibration)
    fresh = replace(once, rewrites=())
    assert octaves_of(fresh, calibration) == ()
    assert equalise(fresh, calibration) is fresh


def test_networks_that_are_not_to_be_changed() -> None:
    model = loaded(BASE)
    calibration = noise(BASE, PATCH, count=1)
    learnt = replace(model, quantization=Quantization(weight_levels=63, thresholds={"stem": 1.0}))
    fused = fuse(model)
    assert equalise(learnt, calibration) is learnt
    assert equalise(fused, calibration) is fused
