"""INT8 in an ONNX graph: what it computes, and that TensorRT for RTX takes it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional as F

from mednext_edge.errors import TargetUnavailableError
from mednext_edge.export.graph import INPUT
from mednext_edge.fusion.parity import ParityConvTranspose
from mednext_edge.nvidia.build import build_plan
from mednext_edge.nvidia.providers import PROVIDERS
from mednext_edge.nvidia.recipe import BuildRecipe
from mednext_edge.quantize.flavour import NVIDIA
from mednext_edge.quantize.qdq import insert
from tests.quantize.graphs import SINGLE, Array, Quantized, run, scale_of
from tests.quantize.networks import Network


class Rounding:
    """A forward pre-hook: the input as INT8 holds it."""

    def __init__(self, scale: Array) -> None:
        self.scale = float(scale)

    def __call__(self, module: nn.Module, args: tuple[Tensor]) -> Tensor:
        # As QuantizeLinear: half to even, saturated; in float32, in which values are on the same side of a half.
        levels = (args[0].float() / self.scale).round().clamp(-128, 127)
        return levels.double() * self.scale


def per_channel(weight: Tensor) -> Tensor:
    """The weights as INT8 holds them, in float64."""
    rows = weight.double().flatten(1)
    scale = (rows.abs().amax(1, keepdim=True) / 127).float().double()
    return ((rows / scale).round().clamp(-127, 127) * scale).view_as(weight)


def twin(built: Network) -> nn.Module:
    """The network in float64 with inputs, weights and biases of the chosen layers as INT8 holds them."""
    net = copy.deepcopy(built.model.net).double()
    modules = dict(net.named_modules())
    for name, found in built.ranges.items():
        module = modules[name]
        module.register_forward_pre_hook(Rounding(scale_of(built, built.chosen[name], SINGLE)))
        for parameter in module.parameters():
            if parameter.dim() == 1:
                continue
            rounded = per_channel(parameter)
            bias = None if isinstance(module, ParityConvTranspose) else module.bias
            if bias is not None and parameter[0, 0].numel() == 1 and parameter.shape[1] == len(found.mean):
                assert isinstance(bias, Tensor)
                bias += (parameter - rounded).flatten(1) @ found.mean.double()
            parameter.copy_(rounded)
    return net


def rms(values: NDArray[np.generic]) -> float:
    return float(np.sqrt(np.mean(np.asarray(values, dtype=np.float64) ** 2)))


def test_every_convolution_computes_what_its_twin_does(built: Network) -> None:
    """Layer by layer on ONNX Runtime's own inputs, to float32 accuracy."""
    model = built.int8()
    graph = Quantized(model.graph)
    convolutions = graph.convolutions()
    watched = {name: (graph.quantizer(node).input[0], node.output[0]) for name, node in convolutions.items()}
    parameters = {name: value.double() for name, value in twin(built).named_parameters()}
    few = replace(built.calibration, patches=built.calibration.patches[:1])
    names = sorted({name for pair in watched.values() for name in pair if name != INPUT})
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    (image,) = few.patches
    values = {INPUT: image, **dict(zip(names, run(model, image, names), strict=True))}
    for layer in built.chosen.values():
        for weight in layer.weights:
            source, result = watched[weight]
            node = convolutions[weight]
            rounding = Rounding(scale_of(built, layer, SINGLE))
            x = rounding(layer.module, (torch.from_numpy(values[source]),))
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            dims = x.dim() - 2
            pads = attributes.get("pads", [0] * 2 * dims)
            x = F.pad(x, [n for axis in reversed(range(dims)) for n in (pads[axis], pads[axis + dims])])
            convolve: Callable[..., Tensor] = {2: F.conv2d, 3: F.conv3d}[dims]
            expected = convolve(
                x,
                parameters[weight],
                parameters.get(weight.removesuffix("weight") + "bias"),
                stride=attributes.get("strides", 1),
                groups=attributes.get("group", 1),
            ).numpy()
            assert np.abs(values[result] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_network_computes_what_its_twin_does(built: Network) -> None:
    """To a hundredth of what INT8 costs: one value in many is rounded to the other side after float32 sums."""
    reference = twin(built)
    for image in built.calibration.patches:
        with torch.no_grad():
            expected = reference(torch.from_numpy(image).double()).numpy()
            exact = built.model.net(torch.from_numpy(image)).numpy()
        (found,) = run(built.int8(), image)
        assert rms(found - expected) <= 0.01 * rms(expected - exact)
        assert rms(expected - exact) < 0.1 * rms(exact)


def test_float16_graphs_answer_as_float32_ones_do(built: Network) -> None:
    """INT8 costs a float16 network about what it costs a float32 one."""
    image = built.calibration.patches[0]
    exact, single_, half = (run(graph, image)[0] for graph in (built.graph, built.int8(), built.int8(half=True)))
    assert half.dtype == np.float32
    assert np.isfinite(half).all()
    assert rms(half - exact) < 1.5 * rms(single_ - exact)


def test_other_thresholds_lose_more(built: Network) -> None:
    """Four times too high or too low."""
    image = built.calibration.patches[0]
    (exact,) = run(built.graph, image)
    costs = []
    for factor in (1, 4, 0.25):
        off = {name: replace(found, threshold=found.threshold * factor) for name, found in built.ranges.items()}
        costs.append(rms(run(insert(built.graph, built.chosen, off, NVIDIA), image)[0] - exact))
    assert costs[0] < min(costs[1:])


@pytest.fixture
def rtx() -> Iterator[ModuleType]:
    try:
        yield PROVIDERS["tensorrt-rtx"].load()
    except TargetUnavailableError as error:
        pytest.skip(str(error))


def test_tensorrt_for_rtx_builds_it(rtx: ModuleType, built: Network, half: bool, tmp_path: Path) -> None:
    onnx.save(built.int8(half), tmp_path / "model.onnx")
    recipe = BuildRecipe(
        provider="tensorrt-rtx",
        input=INPUT,
        channels=built.config.in_channels,
        min=built.patch,
        opt=built.patch,
        max=built.patch,
    )
    build_plan(tmp_path / "model.onnx", recipe, tmp_path / "model.plan", arch="8.6")
    assert (tmp_path / "model.plan").stat().st_size > 10_000
