"""The networks of the comparison: MedNeXt, and those of the MedNeXt paper's own table that PyPI carries.

All come through `LoadedModel.from_module`, with random weights: these decide what a network answers, not how long it
takes. Sizes are those of the networks' own papers where they say, with one channel in and three classes out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mednext_edge.models.config import mednext_config
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.models.module import ModuleSpec
from mednext_edge.optional import require
from mednext_edge.registry import Registry

CHANNELS, CLASSES = 1, 3
UNET = (32, 64, 128, 256, 320, 320)
"""Features of nnU-Net's stages in 3-D, each half the size of the one before."""

Patch = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """Makes a network for a patch, whose sides are multiples of `divisor`; `any_size`: it takes other patches too."""

    make: Callable[[Patch], nn.Module]
    divisor: int
    any_size: bool = True


NETWORKS: Registry[Network] = Registry("network")


def network(name: str, patch: Patch) -> LoadedModel:
    """A network of the table, in eval mode."""
    entry = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = entry.make(patch)
    spec = ModuleSpec(
        name=name,
        in_channels=CHANNELS,
        classes=CLASSES,
        patch=patch,
        divisor=entry.divisor,
        any_size=entry.any_size,
    )
    return LoadedModel.from_module(net, spec)


def _mednext(variant: str, kernel: int) -> Callable[[Patch], nn.Module]:
    return lambda patch: MedNeXt(mednext_config(variant, in_channels=CHANNELS, classes=CLASSES, kernel=kernel))


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
