"""Residual streams without outlier channels: the same numbers, and less error in INT8."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from mednext_edge.export.graph import to_onnx
from mednext_edge.fusion import fuse
from mednext_edge.models.config import MedNeXtConfig
from mednext_edge.models.loaded import LoadedModel, Quantization
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.quantize.equalise import NAME, equalise, octaves_of, scale, streams
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


@pytest.mark.parametrize("name", CONFIGS)
def test_the_network_s_numbers_stay_bit_for_bit(name: str) -> None:
    config = CONFIGS[name]
    torch.manual_seed(0)
    net = MedNeXt(config).eval()
    other = copy.deepcopy(net)
    found = list(streams(other))
    assert len(found) == config.levels + 1
    for stream in found:
        channels = other.get_submodule(stream.writers[0]).weight.shape[0]
        scale(other, stream, torch.randint(-6, 7, (channels,), dtype=torch.float64))
    x = torch.randn(1, config.in_channels, *(32,) * config.spatial_dims)
    with torch.inference_mode():
        expected, answer = net(x), other(x)
    pairs = zip(expected, answer, strict=True) if config.deep_supervision else [(expected, answer)]
    assert all(torch.equal(a, b) for a, b in pairs)
    # Every residual sum has changed all the same.
    assert not torch.equal(net.stem.weight, other.stem.weight)


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


def test_outliers_cost_int8_less() -> None:
    model = loaded(BASE)
    model.net.float()
    calibration = noise(BASE, PATCH, count=2)
    assert equalise(model, calibration) is model  # no channel is far off
    hard = with_outliers(model, factor=256.0)
    eased = equalise(hard, calibration)
    assert eased.rewrites == (NAME,)
    assert min(octaves_of(hard, calibration)[0]) == -8
    x = torch.from_numpy(calibration.patches[0])
    with torch.inference_mode():
        assert torch.equal(eased.net(x), hard.net(x))
    # What is left is in the inputs of the norms, which the stream's factor does not reach.
    assert int8_error(hard) > 5 * int8_error(eased)


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
