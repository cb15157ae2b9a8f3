"""Kinds of convolution: each has one, in every form of the network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

import onnx
import pytest
import torch
from torch import nn

from mednext_edge.errors import ExportError
from mednext_edge.fusion import fuse
from mednext_edge.fusion.instance_norm import InstanceNorm
from mednext_edge.fusion.parity import ParityConvTranspose
from mednext_edge.models.config import MedNeXtConfig, mednext_config
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.quantize.kinds import CONVOLUTIONS, KINDS, THIN, TRANSPOSED, Layer, find, kind_of, layers
from tests.fusion.networks import MEDNEXT, loaded
from tests.quantize.networks import FLAT, WIDE, WITH_GRN, fused, network

EXPECTED = {
    "stem": "thin",
    "enc_block_0.0.conv1": "depthwise",
    "enc_block_0.0.conv2": "pointwise",
    "enc_block_0.0.conv3": "pointwise",
    "down_0.conv1": "depthwise",
    "down_0.conv2": "pointwise",
    "down_0.conv3": "pointwise",
    "down_0.res_conv": "strided",
    "bottleneck.0.conv1": "depthwise",
    "bottleneck.0.conv2": "pointwise",
    "bottleneck.0.conv3": "pointwise",
    "up_0.conv1": "transposed",
    "up_0.conv2": "pointwise",
    "up_0.conv3": "pointwise",
    "up_0.res_conv": "transposed",
    "dec_block_0.0.conv1": "depthwise",
    "dec_block_0.0.conv2": "pointwise",
    "dec_block_0.0.conv3": "pointwise",
    "out_0.conv_out": "thin",
}
"""Of every network here: `WIDE` in all its forms has the same convolutions."""
NORMS = {name.replace("conv1", "norm"): "norm" for name in EXPECTED if name.endswith("conv1")}


def found(config: MedNeXtConfig, optional: Collection[str] = ()) -> dict[str, Layer]:
    listed = list(layers(fused(config, optional).net))
    by_name = {layer.name: layer for layer in listed}
    assert len(by_name) == len(listed)
    return by_name


@pytest.mark.parametrize("optional", [(), ("parity",)], ids=["plain", "parity"])
@pytest.mark.parametrize(
    "config",
    [WIDE, WITH_GRN, FLAT, replace(WIDE, norm="layer"), replace(WIDE, encoder_kernel=5, decoder_kernel=7)],
    ids=["3-D", "GRN", "2-D", "layer norm", "kernels 5 and 7"],
)
def test_every_convolution_has_its_kind(config: MedNeXtConfig, optional: Collection[str]) -> None:
    # A norm over channels is several operators in a graph.
    norms = {} if config.norm == "layer" else NORMS
    assert {name: layer.kind for name, layer in found(config, optional).items()} == {**EXPECTED, **norms}


def test_layers_come_in_the_order_of_the_modules() -> None:
    kinds = (*every_convolution(), InstanceNorm)
    assert list(found(WIDE)) == [n for n, m in fused(WIDE).net.named_modules() if isinstance(m, kinds)]


def test_a_network_of_one_layer() -> None:
    (layer,) = layers(nn.Conv3d(16, 16, 1))
    assert (layer.name, layer.kind, layer.weights) == ("", "pointwise", ("weight",))


@pytest.mark.parametrize("name", MEDNEXT)
def test_no_convolution_is_left_out_of_any_network(name: str) -> None:
    for optional in ((), ("parity",)):
        net = fuse(loaded(MEDNEXT[name]), optional=optional).net
        convolutions = {n: m for n, m in net.named_modules() if isinstance(m, every_convolution())}
        listed = {layer.name: layer for layer in layers(net) if layer.kind != "norm"}
        assert {n: layer.module for n, layer in listed.items()} == convolutions
        assert {layer.kind for layer in listed.values()} <= set(KINDS)
        parameters = dict(net.named_parameters())
        for layer in listed.values():
            assert layer.weights
            for weight in layer.weights:
                assert parameters[weight].dim() == 2 + MEDNEXT[name].spatial_dims


@pytest.mark.parametrize(("config", "parts"), [(WIDE, 8), (FLAT, 4)], ids=["3-D", "2-D"])
def test_the_parity_form_has_several_weights(config: MedNeXtConfig, parts: int) -> None:
    plain, rewritten = found(config), found(config, ("parity",))
    assert plain["up_0.conv1"].weights == ("up_0.conv1.weight",)
    assert rewritten["up_0.conv1"].weights == tuple(f"up_0.conv1.weight_{i}" for i in range(parts))
    others = {n: layer for n, layer in rewritten.items() if n != "up_0.conv1"}
    assert all(layer.weights == ((f"{n}.weight",) if n not in NORMS else ()) for n, layer in others.items())


def test_transposed_convolutions_are_quantizable_in_their_parity_form_only() -> None:
    plain, rewritten = found(WIDE), found(WIDE, ("parity",))
    assert {n for n, layer in plain.items() if not layer.quantizable} == {"up_0.conv1", "up_0.res_conv"}
    assert {n for n, layer in rewritten.items() if not layer.quantizable} == {"up_0.res_conv"}


def test_a_training_form_has_transposed_heads() -> None:
    net = loaded(replace(WIDE, deep_supervision=True)).net
    kinds = {layer.name: layer.kind for layer in layers(net)}
    assert kinds == {
        **EXPECTED,
        "out_0.conv_out": "transposed",
        "out_1.conv_out": "transposed",
    }


def test_a_narrow_network_is_thin_where_it_is_narrow() -> None:
    counts = Counter(layer.kind for layer in found(replace(WIDE, channels=THIN // 2)).values())
    # The bottleneck alone has 16 channels on both sides; so have the inner convolutions of the up block.
    assert counts == {"depthwise": 4, "transposed": 2, "pointwise": 4, "thin": 9, "norm": 5}


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.Conv3d(16, 16, 1), "pointwise"),
        (nn.Conv2d(16, 64, 1), "pointwise"),
        (nn.Conv3d(15, 64, 1), "thin"),
        (nn.Conv3d(64, 15, 1), "thin"),
        (nn.Conv3d(1, 1, 1), "thin"),
        (nn.Conv3d(16, 32, 1, stride=2), "strided"),
        (nn.Conv3d(16, 32, 1, stride=(1, 2, 2)), "strided"),
        (nn.Conv3d(8, 16, 1, stride=2), "thin"),
        (nn.Conv3d(32, 32, 3, groups=32), "depthwise"),
        (nn.Conv3d(32, 64, 3, groups=32), "depthwise"),
        (nn.Conv2d(4, 4, (1, 7), groups=4), "depthwise"),
        (nn.Conv3d(4, 4, 1, groups=4), "depthwise"),
        (nn.Conv3d(32, 32, 3), "dense"),
        (nn.Conv3d(1, 32, 3), "dense"),
        (nn.Conv2d(32, 32, (1, 3)), "dense"),
        (nn.Conv3d(32, 32, 3, groups=4), "dense"),
        (nn.ConvTranspose3d(32, 32, 3, stride=2, groups=32), "transposed"),
        (nn.ConvTranspose2d(32, 16, 1), "transposed"),
        (ParityConvTranspose(torch.zeros(4, 1, 3, 3, 3)), "transposed"),
    ],
)
def test_kind_of(module: nn.Conv3d, kind: str) -> None:
    assert kind_of(module) == kind


def test_every_kind_is_described() -> None:
    assert all(text and text == text.strip() for text in KINDS.values())
    assert set(EXPECTED.values()) | {"dense", "norm"} == set(KINDS)


@pytest.mark.parametrize(
    ("variant", "kernel", "share"), [("S", 3, 0.9), ("B", 3, 0.92), ("S", 5, 0.69), ("L", 5, 0.85)]
)
def test_pointwise_convolutions_hold_most_multiplications(variant: str, kernel: int, share: float) -> None:
    """Counted on a real network's layers without computing anything."""
    multiplications: Counter[str] = Counter()
    net = MedNeXt(mednext_config(variant, kernel=kernel)).to("meta")
    for layer in layers(net):
        assert not isinstance(layer.module, (ParityConvTranspose, InstanceNorm))

        def count(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor, kind: str = layer.kind) -> None:
            assert isinstance(module.weight, torch.Tensor)
            # A transposed convolution spreads every voxel of its input, the others gather every one of their output.
            multiplications[kind] += (args[0] if kind == "transposed" else output).numel() * module.weight[0].numel()

        layer.module.register_forward_hook(count)
    with torch.no_grad():
        net(torch.empty(1, 1, 64, 64, 64, device="meta"))
    assert multiplications["pointwise"] / multiplications.total() == pytest.approx(share, abs=0.005)


def test_layers_are_found_in_their_graph() -> None:
    """A convolution by its weights, a norm by its name; in the parity form every part of a transposed convolution."""
    built = network("all, GRN")
    nodes = {name: find(built.graph.graph, layer) for name, layer in built.chosen.items()}
    assert {name for name, found in nodes.items() if len(found) > 1} == {"up_0.conv1"}
    assert len(nodes["up_0.conv1"]) == 8
    readers = {tensor: node for node in built.graph.graph.node for tensor in node.input}
    for name in NORMS:
        (norm,) = nodes[name]
        assert norm.op_type == "InstanceNormalization"
        assert readers[norm.output[0]].name == name.replace("norm", "conv2")
        if name != "up_0.norm":
            assert [norm.input[0]] == list(nodes[name.replace("norm", "conv1")][0].output)


@pytest.mark.parametrize("name", ["up_0.conv1", "up_0.norm"])
def test_a_layer_that_the_graph_does_not_have(name: str) -> None:
    built = network("all, GRN")
    graph = onnx.GraphProto()
    graph.CopyFrom(built.graph.graph)
    gone = find(graph, built.chosen[name])[-1]
    gone.op_type = "Wobble"
    with pytest.raises(ExportError, match=rf"no layer with the weights {gone.input[1] if 'conv' in name else name}"):
        find(graph, built.chosen[name])


def every_convolution() -> tuple[type[nn.Module], ...]:
    return (*CONVOLUTIONS, *TRANSPOSED, ParityConvTranspose)
