"""Depthwise convolutions of 2-D networks by our operators: which are taken, what they keep, and that they train on."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mednext_edge.fusion.cpu_training import use_cpu_training
from mednext_edge.fusion.depthwise import DepthwiseConv, fits, use_depthwise
from mednext_edge.fusion.fuse import fuse
from mednext_edge.models.loaded import LoadedModel

from .networks import CMUNEXT, MEDNEXT, MEDNEXT2D, SMALL_2D, TINY, Config, image, loaded
from .test_fuse import TOLERANCE, answer, difference

TWO_DIMENSIONAL: dict[str, Config] = {
    "MedNeXt": MEDNEXT["2-D, kernel 3"],
    "CMUNeXt": CMUNEXT["tiny"],
    "2-D MedNeXt": SMALL_2D,
}
every_network = pytest.mark.parametrize("config", TWO_DIMENSIONAL.values(), ids=TWO_DIMENSIONAL)


def ours(net: nn.Module) -> list[DepthwiseConv]:
    return [module for module in net.modules() if isinstance(module, DepthwiseConv)]


def swapped(model: LoadedModel, **options: tuple[int, ...]) -> nn.Module:
    net = copy.deepcopy(model.net)
    use_depthwise(net, **options)
    return net


@pytest.mark.parametrize(
    ("config", "places"),
    [
        # Five blocks, two down, two up.
        (MEDNEXT["2-D, kernel 3"], 9),
        (MEDNEXT["2-D, kernel 7"], 9),
        # One in every unit: 1, 2, 1, 1 and 3 of them; five encoders of two.
        (CMUNEXT["tiny"], 8),
        (CMUNEXT["many classes"], 10),
        # 5x5 and 3x3 of every block, five of them; 3x3 of three levels of the decoder. Strips and 11x11 are PyTorch's.
        (MEDNEXT2D["tiny"], 13),
        (MEDNEXT2D["convolution attention"], 13),
        (MEDNEXT2D["classification"], 10),
    ],
    ids=str,
)
def test_what_is_taken(config: Config, places: int) -> None:
    model, x = loaded(config), image(config, batch=2)
    net = copy.deepcopy(model.net)
    assert use_depthwise(net) == places
    assert use_depthwise(net) == 0
    assert len(ours(net)) == places
    assert difference(answer(net, x), answer(model.net, x)) <= TOLERANCE


def test_by_the_number_of_axes() -> None:
    volumes, images = loaded(TINY), loaded(CMUNEXT["tiny"])
    assert [len(ours(swapped(model, dims=(2,)))) for model in (volumes, images)] == [0, 8]
    assert [len(ours(swapped(model, dims=(3,)))) for model in (volumes, images)] == [9, 0]


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"kernel_size": 9, "padding": 4}, True),
        ({"kernel_size": 9, "padding": 4, "stride": 2}, False),
        ({"kernel_size": 11, "padding": 5}, False),
        ({"kernel_size": (1, 7), "padding": (0, 3)}, False),
        ({"kernel_size": 4, "padding": 2}, False),
        ({"stride": 2}, True),
        ({"stride": (1, 2)}, False),
        ({"stride": 3}, False),
        ({"groups": 2}, False),
        ({"out_channels": 8}, False),
        ({"padding": 0}, False),
        ({"padding_mode": "reflect"}, False),
        ({"dilation": 2, "padding": 2}, False),
    ],
    ids=str,
)
def test_a_convolution_of_another_kind_is_left(change: dict[str, object], taken: bool) -> None:
    given = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": 1, "groups": 4} | change
    assert fits(nn.Conv2d(**given)) == taken  # type: ignore[arg-type]


@every_network
def test_the_backend(config: Config) -> None:
    model, x = loaded(config), image(config)
    deploy = fuse(model, backend="cuda")
    assert deploy.rewrites[-1] == "cuda-depthwise"
    assert deploy.rewrites[:-1] == fuse(model).rewrites
    assert len(ours(deploy.net)) == len(ours(swapped(model)))
    assert difference(answer(deploy.net, x), answer(model.net, x)) <= TOLERANCE
    assert list(deploy.net.state_dict()) == list(fuse(model).net.state_dict())


@every_network
def test_it_trains_as_before(config: Config) -> None:
    model, x = loaded(config), image(config, batch=2)
    nets = [swapped(model).train(), copy.deepcopy(model.net).train()]
    assert list(nets[0].state_dict()) == list(nets[1].state_dict())
    nets[0].load_state_dict(nets[1].state_dict())
    outputs = [net(x) for net in nets]
    for y in outputs:
        y.square().mean().backward()
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        if name == "dummy_tensor":  # of activation checkpointing
            continue
        assert a.grad is not None and b.grad is not None, name
        largest = b.grad.abs().max()
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=float(1e-9 * largest + 1e-12), msg=name)


@every_network
def test_training_on_a_cpu_leaves_them_to_pytorch(config: Config) -> None:
    net = copy.deepcopy(loaded(config).net)
    assert use_cpu_training(net) == 0
    assert not ours(net)


@every_network
def test_onnx_holds_standard_convolutions_of_images(config: Config) -> None:
    import onnxruntime

    from mednext_edge.export.graph import to_onnx

    model = loaded(config)
    model = replace(model, net=copy.deepcopy(model.net).float())
    x = image(config).float()
    graphs = [to_onnx(fuse(model, backend=backend), tuple(x.shape[2:])) for backend in ("cuda", "torch")]
    found, expected = (
        sorted((n.op_type, str(list(n.attribute))) for n in graph.graph.node if "Conv" in n.op_type) for graph in graphs
    )
    assert found == expected
    assert {n.domain for n in graphs[0].graph.node} == {""} and not graphs[0].functions
    given = x.numpy().astype(np.float32)
    answers = [
        onnxruntime.InferenceSession(g.SerializeToString()).run(None, {g.graph.input[0].name: given})[0] for g in graphs
    ]
    np.testing.assert_allclose(*answers, rtol=1e-4, atol=1e-4 * float(np.abs(answers[1]).max()))
