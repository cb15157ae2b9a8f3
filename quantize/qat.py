"""Quantisation-aware training: a network in training form that computes as its INT8 engine will.

The layers are those of the post-training plan, under the same names, and what is learnt goes into the same graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn
from torch.nn.utils import parametrize

from mednext_edge.errors import ExportError
from mednext_edge.fusion.depthwise import DepthwiseConv
from mednext_edge.models.loaded import Quantization
from mednext_edge.quantize.fake import InputQuantizer, WeightRounder
from mednext_edge.quantize.flavour import Flavour
from mednext_edge.quantize.kinds import CONVOLUTIONS, TRANSPOSED
from mednext_edge.quantize.plan import Plan
from mednext_edge.quantize.ptq import choose
from mednext_edge.quantize.ranges import ActivationRange

QUANTIZER = "input_quantizer"


def attach(net: nn.Module, quantization: Quantization) -> None:
    """Make the layers of a network compute in INT8, in place, with thresholds to learn.

    Args:
        net: in training form, with neutral norms (`fusion.neutral`).
        quantization: its layers; nn.Module names, the same in training form and in deploy form.
    """
    for name, threshold in quantization.thresholds.items():
        layer = net.get_submodule(name)
        if isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED, DepthwiseConv)):
            parametrize.register_parametrization(layer, "weight", WeightRounder(layer, quantization.weight_levels))
        layer.add_module(QUANTIZER, InputQuantizer(threshold))
        layer.register_forward_pre_hook(_round_input)


def _round_input(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (layer.get_submodule(QUANTIZER)(args[0]), *args[1:])


def learnt(net: nn.Module, quantization: Quantization) -> tuple[dict[str, Tensor], Quantization]:
    """What `attach` and the training came to.

    Args:
        net: with quantisers.
        quantization: that `attach` was given.

    Returns:
        The weights under the names that they have without quantisers, and the layers with the learnt thresholds.
    """
    state = {
        name.replace("parametrizations.weight.original", "weight"): tensor
        for name, tensor in net.state_dict().items()
        if f"{QUANTIZER}." not in name
    }
    thresholds = {}
    for name in quantization.thresholds:
        quantizer = net.get_submodule(f"{name}.{QUANTIZER}")
        assert isinstance(quantizer, InputQuantizer)
        thresholds[name] = float(quantizer.threshold.detach())
    return state, quantization.model_copy(update={"thresholds": thresholds})


def quantization_of(plan: Plan) -> Quantization:
    """Where training starts: the calibrated thresholds of a plan's layers in INT8."""
    thresholds = {name: seen.threshold for name, seen in plan.ranges.items() if name not in plan.float_layers}
    return Quantization(weight_levels=plan.flavour.weight_levels, thresholds=thresholds)


def learnt_plan(net: nn.Module, quantization: Quantization, flavour: Flavour, kinds: tuple[str, ...] = ()) -> Plan:
    """The plan of a network that was trained in INT8: its own thresholds and levels, for the layers a target takes.

    Args:
        net: in deploy form.
        quantization: what was learnt.
        flavour: of the engine.
        kinds: of layers in place of the flavour's.

    Raises:
        ExportError: none of the layers to quantise was trained in INT8.
    """
    chosen = choose(net, kinds or flavour.kinds)
    trained: Mapping[str, float] = {n: t for n, t in quantization.thresholds.items() if n in chosen}
    if not trained:
        kept = ", ".join(sorted({layer.kind for layer in chosen.values()}))
        raise ExportError(
            f"this checkpoint was trained in INT8, but no layer of the kinds {kept} was; give --int8-layers that were, "
            "or train with those that the target takes"
        )
    # Training has seen what rounding takes from the mean.
    ranges = {name: ActivationRange(threshold, threshold, None) for name, threshold in trained.items()}
    levels = min(flavour.weight_levels, quantization.weight_levels)  # more than its own saturate in an engine
    return Plan(chosen, ranges, replace(flavour, weight_levels=levels))
