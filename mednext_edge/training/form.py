"""The form in which a network trains on a device: by our kernels where those are quicker."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from mednext_edge.fusion.cpu_training import use_cpu_training
from mednext_edge.fusion.cuda_block import use_cuda_block
from mednext_edge.fusion.depthwise import use_depthwise
from mednext_edge.training.plan import TrainingPlan


def training_form(
    net: nn.Module, plan: TrainingPlan, device: str, on_note: Callable[[str], None] = lambda _: None
) -> nn.Module:
    """A copy in training mode on its device, whose states fit the network itself.

    On a CPU, depthwise convolutions and norms in 3-D are ours (`fusion.cpu_training`), and a CMUNeXt is channels-last,
    in which a step took 2.6 s in place of 3.6 (S, 8 x 256 x 256, two loaded AVX2 cores). With `plan.fused`, whole
    blocks are ours (`fusion.cuda_block`), and the depthwise convolutions of other blocks and of 2-D networks, which are
    channels-last then, as our CUDA kernels take images.

    Args:
        net: in training form, maybe with quantisers.
        plan: the recipe.
        device: torch device.
        on_note: told of a form that was asked for and does not fit the network.
    """
    net = copy.deepcopy(net)
    if hasattr(net, "checkpoint_gradients"):
        net.checkpoint_gradients = plan.checkpoint_gradients  # type: ignore[assignment]
    if plan.fused:
        if use_cuda_block(net) + use_depthwise(net) == 0:
            on_note("no layer of this network fits our operators; it computes with PyTorch's")
        if torch.device(device).type != "cpu" and _is_flat(net):
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    elif torch.device(device).type == "cpu":
        use_cpu_training(net)
        if _may_be_channels_last(net):
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net.to(device).train()


def _may_be_channels_last(net: nn.Module) -> bool:
    """Whether a network is 2-D and PyTorch (2.13, on CPUs) trains it in this order as well as in the usual one.

    The gradient of a 1x1 convolution with a stride writes past its memory there where it has fewer than 8 channels, and
    that of GroupNorm is imprecise. In bfloat16 the weight gradients of depthwise convolutions with a stride, and of
    transposed ones, are at times garbage there, on images one pixel wide.
    """
    return _is_flat(net) and not any(
        isinstance(part, (nn.GroupNorm, nn.ConvTranspose2d))
        or (isinstance(part, nn.Conv2d) and part.stride != (1, 1) and (part.kernel_size == (1, 1) or part.groups > 1))
        for part in net.modules()
    )


def _is_flat(net: nn.Module) -> bool:
    return all(parameter.dim() < 5 for parameter in net.parameters())
