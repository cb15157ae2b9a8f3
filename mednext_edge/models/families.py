"""The table of network families: how to build each from its configuration, and how to name it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from mednext_edge.errors import CheckpointError, MednextEdgeError, UsageError
from mednext_edge.models.cmunext import VARIANTS as CMUNEXT_VARIANTS
from mednext_edge.models.cmunext import CMUNeXt, CMUNeXtConfig, cmunext_config
from mednext_edge.models.config import VARIANTS as MEDNEXT_VARIANTS
from mednext_edge.models.config import MedNeXtConfig, mednext_config
from mednext_edge.models.ensemble import Ensemble, describe_ensemble
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.models.mednext2d import VARIANTS as MEDNEXT2D_VARIANTS
from mednext_edge.models.mednext2d import MedNeXt2d, MedNeXt2dConfig, mednext2d_config
from mednext_edge.models.module import FAMILY as MODULE
from mednext_edge.models.module import refuse_to_build
from mednext_edge.registry import Registry
from mednext_edge.task import ModelSpec


@dataclass(frozen=True)
class Request:
    """A network that is to be trained: what the data and the user ask for.

    Attributes:
        kind: what it answers.
        variant: name of the size; None leaves it to the family.
        labels: classes to tell apart, the background included; with `regions` their number.
        regions: every output stands for itself; classes exclude each other.
        kernel: of the depthwise convolutions; None leaves it to the variant.
        grn: global response normalisation in the blocks.
    """

    kind: Literal["segmentation", "classification"]
    variant: str | None
    in_channels: int
    labels: int
    spatial_dims: int
    kernel: int | None = None
    grn: bool = False
    regions: bool = False

    def refuse(self, family: str, **allowed: object) -> None:
        """Raises UsageError for the first of these that is asked for otherwise."""
        for name, value in allowed.items():
            if (found := getattr(self, name)) != value:
                raise UsageError(
                    f"found {name.replace('_', ' ')} {found} for a network of the family {family}; expected {value}"
                )


@dataclass(frozen=True)
class Family:
    """One kind of network.

    Attributes:
        build: network from the `config` of a ModelSpec; random weights.
        describe: the ModelSpec of a network of this family.
        divisor: what every spatial size of the input must be a multiple of.
        plan: the `config` of a network to train; None of a family that is not trained.
        variants: names of its sizes, the smallest first.
        kernel: of the depthwise convolutions unless another is asked for; None where the variant decides.
        any_size: whether a network takes every multiple of its divisor; if not, its patch alone.
        batch_dice: whether in 2-D the Dice of its loss is that of a batch, as nnU-Net's; if not, of each image.
    """

    build: Callable[[Mapping[str, Any]], nn.Module]
    describe: Callable[[nn.Module], ModelSpec]
    divisor: Callable[[ModelSpec], int]
    plan: Callable[[Request], Mapping[str, Any]] | None = None
    variants: tuple[str, ...] = ()
    kernel: int | None = None
    any_size: Callable[[ModelSpec], bool] = lambda spec: True
    batch_dice: bool = False


MEDNEXT_KERNEL = 3
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


def describe_mednext2d(net: nn.Module) -> ModelSpec:
    """ModelSpec of a 2-D MedNeXt; `kernel_size` is that of its square depthwise convolutions on the way in."""
    assert isinstance(net, MedNeXt2d)
    config = net.config
    return ModelSpec(
        kind=config.kind,
        family="mednext2d",
        variant=config.variant,
        kernel_size=5,
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


def plan_mednext(request: Request) -> Mapping[str, Any]:
    """A published variant, kernel 3 unless asked otherwise, with deep supervision."""
    request.refuse("mednext", kind="segmentation")
    return mednext_config(
        request.variant or "S",
        in_channels=request.in_channels,
        classes=request.labels,
        kernel=request.kernel or MEDNEXT_KERNEL,
        spatial_dims=request.spatial_dims,
        grn=request.grn,
        deep_supervision=True,
    ).to_dict()


def plan_cmunext(request: Request) -> Mapping[str, Any]:
    """A published variant, with one output for one foreground class, as the authors have it."""
    request.refuse("cmunext", kind="segmentation", spatial_dims=2, kernel=None, grn=False)
    classes = 1 if request.labels == 2 and not request.regions else request.labels
    return cmunext_config(request.variant or "S", in_channels=request.in_channels, classes=classes).to_dict()


def plan_mednext2d(request: Request) -> Mapping[str, Any]:
    """One of its sizes, with an output for every class."""
    request.refuse("mednext2d", spatial_dims=2, kernel=None, grn=False)
    return mednext2d_config(
        request.variant or "tiny", kind=request.kind, in_channels=request.in_channels, classes=request.labels
    ).to_dict()


def plan_spec(family: str, request: Request) -> ModelSpec:
    """The network of a family that a request leads to.

    Raises:
        UnknownNameError: no such family or variant.
        UsageError: the family has no such network.
    """
    entry = FAMILIES[family]
    if entry.plan is None:
        raise UsageError(f"a network of the family {family} is not trained itself")
    config = entry.plan(request)
    with torch.device("meta"):
        return entry.describe(entry.build(config))


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
        plan=plan_mednext,
        variants=tuple(MEDNEXT_VARIANTS),
        kernel=MEDNEXT_KERNEL,
        batch_dice=True,
    ),
)
FAMILIES.add(
    "cmunext",
    Family(
        build=lambda config: CMUNeXt(CMUNeXtConfig(**config)),
        describe=describe_cmunext,
        divisor=lambda spec: CMUNeXtConfig(**spec.config).divisor,
        plan=plan_cmunext,
        variants=tuple(CMUNEXT_VARIANTS),
    ),
)
FAMILIES.add(
    "mednext2d",
    Family(
        build=lambda config: MedNeXt2d(MedNeXt2dConfig(**config)),
        describe=describe_mednext2d,
        divisor=lambda spec: MedNeXt2dConfig(**spec.config).divisor,
        plan=plan_mednext2d,
        variants=tuple(MEDNEXT2D_VARIANTS),
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
FAMILIES.add(
    MODULE,
    Family(
        build=refuse_to_build,
        describe=refuse_to_build,
        divisor=lambda spec: int(spec.config["divisor"]),
        any_size=lambda spec: bool(spec.config["any_size"]),
    ),
)
