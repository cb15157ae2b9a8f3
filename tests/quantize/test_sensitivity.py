"""What each layer costs alone, against PyTorch and against what it is said to be."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from mednext_edge.fusion.parity import ParityConvTranspose
from mednext_edge.quantize.flavour import CPU
from mednext_edge.quantize.plan import Plan
from mednext_edge.quantize.sensitivity import Sensitivity, _compare, crop, measure
from tests.quantize.networks import network


@cache
def plan() -> Plan:
    built = network("all, GRN")
    return Plan(built.chosen, built.ranges, CPU)


@cache
def measured() -> dict[str, Sensitivity]:
    built = network("all, GRN")
    return {found.name: found for found in measure(built.graph, plan(), built.calibration.patches[:2])}


def test_every_layer_has_an_entry_in_order() -> None:
    assert list(measured()) == list(plan().ranges)
    assert {name: found.kind for name, found in measured().items()} == {n: e.kind for n, e in plan().layers.items()}


def test_every_layer_costs_something_and_little() -> None:
    for found in measured().values():
        assert 0 < found.nmse < 0.05, found
        assert 0.97 < found.cosine < 1
        assert found.dice_drop is not None
        assert 0 <= found.dice_drop < 0.3
        assert (found.decision, found.price) == ("int8", found.nmse / found.gain)


def test_one_layer_by_hand() -> None:
    built = network("all, GRN")
    name = "enc_block_0.0.conv2"
    alone = plan().keeping(set(plan().ranges) - {name}).apply(built.graph)
    assert sum(node.op_type == "QuantizeLinear" for node in alone.graph.node) == 1
    errors = squares = 0.0
    for patch in built.calibration.patches[:2]:
        exact, found = (
            ort.InferenceSession(g.SerializeToString()).run(None, {"image": patch})[0].astype(np.float64)
            for g in (built.graph, alone)
        )
        errors, squares = errors + ((found - exact) ** 2).sum(), squares + (exact**2).sum()
    assert measured()[name].nmse == pytest.approx(errors / squares, rel=1e-3)


def test_multiply_adds_are_those_of_the_network() -> None:
    """Counted by hooks; a parity form has as many as its taps, times the voxels it starts from."""
    built = network("all, GRN")
    counted: dict[str, int] = {}

    def count(name: str, module: nn.Module, output: torch.Tensor) -> None:
        if isinstance(module, ParityConvTranspose):
            voxels = built.patch[0] // 2
            counted[name] = voxels**3 * sum(weight.numel() for weight in module.parameters())
        elif isinstance(module, nn.Conv3d):
            counted[name] = output.numel() * module.weight[0].numel()

    hooks = [
        layer.module.register_forward_hook(lambda module, _, output, name=name: count(name, module, output))
        for name, layer in built.chosen.items()
    ]
    with torch.no_grad():
        built.model.net(torch.from_numpy(built.calibration.patches[0]))
    for hook in hooks:
        hook.remove()
    assert {name: found.macs for name, found in measured().items() if found.kind != "norm"} == counted
    assert {found.macs for found in measured().values() if found.kind == "norm"} == {0}


def test_gains_are_shares() -> None:
    gains = {name: found.gain for name, found in measured().items()}
    assert sum(gains.values()) == pytest.approx(1)
    assert min(gains.values()) > 0
    assert gains["dec_block_0.0.conv2"] > gains["bottleneck.0.conv2"]


def test_known_layers_are_left_out() -> None:
    built = network("pointwise")
    first, *others = built.ranges
    found = list(measure(built.graph, Plan(built.chosen, built.ranges, CPU), built.calibration.patches[:1], [first]))
    assert [layer.name for layer in found] == others
    assert not list(measure(built.graph, Plan(built.chosen, built.ranges, CPU), [], list(built.ranges)))


def test_logits_without_foreground_have_no_dice() -> None:
    empty = np.zeros((1, 3, 4, 4), np.float32)
    empty[:, 0] = 1
    nmse, cosine, dice_drop = _compare([empty], iter([empty]))
    assert (nmse, dice_drop) == (0, None)
    assert cosine == pytest.approx(1)


def test_dice_is_over_all_patches_and_the_classes_that_are_there() -> None:
    def logits(labels: list[int]) -> np.ndarray:
        return np.eye(4, dtype=np.float32)[labels].T[np.newaxis]  # [1, 4, voxels]

    exact = [logits([0, 1, 1, 2]), logits([0, 1, 2, 2])]
    found = [logits([0, 1, 0, 2]), logits([0, 1, 2, 2])]
    *_, dice_drop = _compare(exact, iter(found))
    assert dice_drop == pytest.approx(1 - (2 * 2 / 5 + 1) / 2)


def test_crop_is_the_centre() -> None:
    patch = np.arange(6 * 5, dtype=np.float32).reshape(1, 1, 6, 5)
    assert crop(patch, (2, 3)).tolist() == [[[[11, 12, 13], [16, 17, 18]]]]
    assert np.array_equal(crop(patch, (6, 5)), patch)
