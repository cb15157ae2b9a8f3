"""The networks of the comparison: MedNeXt, those of the MedNeXt paper's own table that PyPI carries, and 2-D ones.

All come through `LoadedModel.from_module`, with random weights: these decide what a network answers, not how long it
takes. Sizes are those of the networks' own papers where they say, with one channel in (2-D: three, for photographs)
and three classes out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mednext_edge.errors import UsageError
from mednext_edge.models.cmunext import CMUNeXt, cmunext_config
from mednext_edge.models.config import mednext_config
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.models.mednext2d import Kind, MedNeXt2d, mednext2d_config
from mednext_edge.models.module import ModuleSpec
from mednext_edge.optional import require
from mednext_edge.registry import Registry

CHANNELS, COLOURS, CLASSES = 1, 3, 3
UNET = (32, 64, 128, 256, 320, 320)
"""Features of nnU-Net's stages in 3-D, each half the size of the one before."""

Patch = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """Makes a network for a patch of `dims` sides, multiples of `divisor`; `any_size`: it takes other patches too."""

    make: Callable[[Patch], nn.Module]
    divisor: int
    any_size: bool = True
    dims: int = 3
    channels: int = CHANNELS
    kind: Kind = "segmentation"


NETWORKS: Registry[Network] = Registry("network")


def network(name: str, patch: Patch) -> LoadedModel:
    """A network of the table, in eval mode.

    Raises:
        UsageError: the patch has more or fewer sides than the network has spatial axes.
    """
    entry = NETWORKS[name]
    if len(patch) != entry.dims:
        raise UsageError(f"found a patch of {len(patch)} sides; {name} takes {entry.dims}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = entry.make(patch)
    spec = ModuleSpec(
        name=name,
        in_channels=entry.channels,
        classes=CLASSES,
        patch=patch,
        divisor=entry.divisor,
        any_size=entry.any_size,
        kind=entry.kind,
    )
    return LoadedModel.from_module(net, spec)


def _mednext(variant: str, kernel: int) -> Callable[[Patch], nn.Module]:
    return lambda patch: MedNeXt(mednext_config(variant, in_channels=CHANNELS, classes=CLASSES, kernel=kernel))


def _cmunext(variant: str) -> Callable[[Patch], nn.Module]:
    return lambda patch: CMUNeXt(cmunext_config(variant, in_channels=COLOURS, classes=CLASSES))


def _mednext2d(variant: str, kind: Kind) -> Callable[[Patch], nn.Module]:
    return lambda patch: MedNeXt2d(mednext2d_config(variant, kind=kind, in_channels=COLOURS, classes=CLASSES))


def _monai_mednext(patch: Patch) -> nn.Module:
    from monai.networks.nets.mednext import MedNeXtSmall

    return MedNeXtSmall(in_channels=CHANNELS, out_channels=CLASSES, kernel_size=3, deep_supervision=False)


def _dynunet(patch: Patch) -> nn.Module:
    from monai.networks.nets import DynUNet

    strides = [1] + [2] * (len(UNET) - 1)
    return DynUNet(3, CHANNELS, CLASSES, [3] * len(UNET), strides, strides[1:], filters=UNET)


def _plain_conv_unet(patch: Patch) -> nn.Module:
    unet = require("dynamic_network_architectures.architectures.unet", "peers").PlainConvUNet
    made: nn.Module = unet(
        CHANNELS,
        len(UNET),
        UNET,
        nn.Conv3d,
        3,
        [1] + [2] * (len(UNET) - 1),
        2,
        CLASSES,
        2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
    return made


def _unetr(patch: Patch) -> nn.Module:
    require("einops", "peers")
    from monai.networks.nets import UNETR

    return UNETR(CHANNELS, CLASSES, patch)


def _swin_unetr(patch: Patch) -> nn.Module:
    require("einops", "peers")
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(CHANNELS, CLASSES, feature_size=48)


NETWORKS.add("mednext-S-k3", Network(_mednext("S", 3), 16))
NETWORKS.add("mednext-B-k5", Network(_mednext("B", 5), 16))
NETWORKS.add("mednext-L-k3", Network(_mednext("L", 3), 16))
NETWORKS.add("monai-mednext-S-k3", Network(_monai_mednext, 16))
NETWORKS.add("dynunet", Network(_dynunet, 32))
NETWORKS.add("plainconvunet", Network(_plain_conv_unet, 32))
NETWORKS.add("unetr", Network(_unetr, 16, any_size=False))
NETWORKS.add("swinunetr", Network(_swin_unetr, 32, any_size=False))
for _variant in ("S", "base", "L"):
    NETWORKS.add(f"cmunext-{_variant}", Network(_cmunext(_variant), 16, dims=2, channels=COLOURS))
for _variant in ("tiny", "small", "base"):
    NETWORKS.add(f"mednext2d-{_variant}", Network(_mednext2d(_variant, "segmentation"), 32, dims=2, channels=COLOURS))
    NETWORKS.add(
        f"mednext2d-{_variant}-classes",
        Network(_mednext2d(_variant, "classification"), 32, dims=2, channels=COLOURS, kind="classification"),
    )
