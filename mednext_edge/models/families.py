"""The table of network families: how to build each from its configuration, and how to name it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from mednext_edge.errors import CheckpointError, MednextEdgeError
from mednext_edge.models.cmunext import CMUNeXt, CMUNeXtConfig
from mednext_edge.models.config import MedNeXtConfig
from mednext_edge.models.ensemble import Ensemble, describe_ensemble
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.registry import Registry
from mednext_edge.task import ModelSpec


@dataclass(frozen=True)
class Family:
    """One kind of network.

    Attributes:
        build: network from the `config` of a ModelSpec; random weights.
        describe: the ModelSpec of a network of this family.
        divisor: what every spatial size of the input must be a multiple of.
    """

    build: Callable[[Mapping[str, Any]], nn.Module]
    describe: Callable[[nn.Module], ModelSpec]
    divisor: Callable[[ModelSpec], int]


FAMILIES: Registry[Family] = Registry("model family")


def describe_mednext(net: nn.Module) -> ModelSpec:
    """ModelSpec of a MedNeXt; `parameters` counts what the checkpoint of its configuration holds."""
    assert isinstance(net, MedNeXt)
    config = net.config
    return ModelSpec(
        family="mednext",
        variant=config.variant,
        kernel_size=config.encoder_kernel,
        spatial_dims=3 if config.spatial_dims == 3 else 2,
        in_channels=config.in_channels,
        classes=config.classes,
        parameters=sum(p.numel() for p in net.parameters()),
        config=config.to_dict(),
    )


def describe_cmunext(net: nn.Module) -> ModelSpec:
    """ModelSpec of a CMUNeXt; `kernel_size` is the largest of its encoders."""
    assert isinstance(net, CMUNeXt)
    config = net.config
    return ModelSpec(
        family="cmunext",
        variant=config.variant,
        kernel_size=max(config.kernels),
        spatial_dims=2,
        in_channels=config.in_channels,
        classes=config.classes,
        parameters=sum(p.numel() for p in net.parameters()),
        config=config.to_dict(),
    )


def build(spec: ModelSpec) -> nn.Module:
    """The network of a ModelSpec, with random weights.

    Raises:
        UnknownNameError: no such family.
        CheckpointError: the configuration is not one of this family.
    """
    family = FAMILIES[spec.family]
    try:
        return family.build(spec.config)
    except (LookupError, TypeError, ValueError, MednextEdgeError) as error:
        raise CheckpointError(f"the configuration of this `{spec.family}` cannot be built: {error}") from error


def for_inference(net: nn.Module) -> nn.Module:
    """The network itself in eval mode, answering with one tensor: heads that only training needs are not asked."""
    if hasattr(net, "do_ds"):
        net.do_ds = False  # type: ignore[assignment]
    return net.eval()


FAMILIES.add(
    "mednext",
    Family(
        build=lambda config: MedNeXt(MedNeXtConfig(**config)),
        describe=describe_mednext,
        divisor=lambda spec: MedNeXtConfig(**spec.config).divisor,
    ),
)
FAMILIES.add(
    "cmunext",
    Family(
        build=lambda config: CMUNeXt(CMUNeXtConfig(**config)),
        describe=describe_cmunext,
        divisor=lambda spec: CMUNeXtConfig(**spec.config).divisor,
    ),
)


def build_ensemble(config: Mapping[str, Any]) -> Ensemble:
    """An ensemble from `members` (how many), `member` (a ModelSpec) and `average`."""
    member = ModelSpec.model_validate(config["member"])
    if member.family == "ensemble":
        raise CheckpointError("an ensemble of ensembles; expected networks as its members")
    if config["average"] not in ("softmax", "logits"):
        raise CheckpointError(f"an ensemble that averages `{config['average']}`; expected softmax or logits")
    members = [build(member) for _ in range(config["members"])]
    return Ensemble(members, FAMILIES[member.family].describe(members[0]), config["average"])


FAMILIES.add(
    "ensemble",
    Family(
        build=build_ensemble,
        describe=describe_ensemble,
        divisor=lambda spec: FAMILIES[spec.config["member"]["family"]].divisor(
            ModelSpec.model_validate(spec.config["member"])
        ),
    ),
)
