"""Apply the rewrites to a loaded model."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import replace

import torch
from torch import nn

from mednext_edge.errors import ExportError
from mednext_edge.fusion import (
    cuda_block,
    depthwise,
    depthwise_bias,
    heads,
    instance_norm,
    norm_affine,
    norm_ahead,
    norm_behind,
    norm_left,
    parity,
    training_parts,
)
from mednext_edge.fusion.rewrite import Rewrite
from mednext_edge.models.families import FAMILIES
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.models.module import FAMILY
from mednext_edge.registry import Registry, unknown_name

REWRITES: Registry[Rewrite] = Registry("rewrite")
"""Every rewrite, in the order of application: biases and affines go before the form they allow."""

REWRITES.add("training-parts", training_parts.REWRITE)
REWRITES.add("plain-heads", heads.REWRITE)
REWRITES.add("depthwise-bias", depthwise_bias.REWRITE)
REWRITES.add("norm-affine", norm_affine.REWRITE)
REWRITES.add("instance-norm", instance_norm.REWRITE)
REWRITES.add("norm-behind", norm_behind.REWRITE)
REWRITES.add("norm-ahead", norm_ahead.REWRITE)
REWRITES.add("norm-left", norm_left.REWRITE)
REWRITES.add("parity", parity.REWRITE)
REWRITES.add("cuda-depthwise", depthwise.REWRITE)
REWRITES.add("cuda-block", cuda_block.REWRITE)

LAYERS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
EXACT = 1e-6
"""Largest change of an answer in float64, relative, of weights that are float32."""

BACKENDS: dict[str, tuple[str, ...]] = {"torch": (), "cuda": ("cuda-depthwise", "cuda-block")}
"""Whose kernels PyTorch computes with -> the optional rewrites for them: ours take whole blocks, or parts of them."""


def fuse(model: LoadedModel, *, backend: str = "torch", optional: Collection[str] = ()) -> LoadedModel:
    """The deploy form of a model; the model itself is not touched.

    Args:
        model: in training form, or already fused (then nothing changes).
        backend: a name of `BACKENDS`. `cuda` computes 3-D blocks with our CUDA kernels, and depthwise convolutions
            of other blocks and of 2-D networks, on a CUDA device.
        optional: names of optional rewrites to apply too, such as `parity`.

    Returns:
        A model with the same task and source, and the names of the rewrites that changed something.

    Raises:
        UnknownNameError: there is no such backend, or `optional` names no rewrite.
        ExportError: a network of another make uses its layers in a way that a rewrite does not know.
    """
    if backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)
    optional = {*optional, *BACKENDS[backend]}
    for name in optional:
        REWRITES[name]
    net = copy.deepcopy(model.net).eval()
    if model.task.model.family == FAMILY:
        _drop_idle(net, model)
    done = list(model.rewrites)
    with torch.no_grad():
        for name, rewrite in REWRITES.items():
            if (not rewrite.optional or name in optional) and rewrite.apply(net):
                done.append(name)
        if len(done) > len(model.rewrites) and model.task.model.family == FAMILY:
            _prove(model, net, done)
    return replace(model, net=net.requires_grad_(False), rewrites=tuple(done))


def _noise(model: LoadedModel) -> torch.Tensor:
    """An input of a network of another make, no larger than it has to be."""
    spec, patch = model.task.model, model.task.inference.patch
    family = FAMILIES[spec.family]
    if family.any_size(spec):
        patch = tuple(min(n, 2 * family.divisor(spec)) for n in patch)
    return torch.randn(1, spec.in_channels, *patch, generator=torch.Generator().manual_seed(0))


def _drop_idle(net: nn.Module, model: LoadedModel) -> None:
    """Take out layers that take no part in an answer, such as heads that only training asks: no graph holds them.

    Raises:
        ExportError: one of them is used without being called.
    """
    idle = {module for module in net.modules() if isinstance(module, LAYERS)}
    hooks = [module.register_forward_pre_hook(lambda module, args: idle.discard(module)) for module in set(idle)]
    x = _noise(model)
    with torch.inference_mode():
        expected = net(x)
    for hook in hooks:
        hook.remove()
    names = [name for name, module in net.named_modules(remove_duplicate=False) if module in idle and name]
    for name in names:
        parent, _, own = name.rpartition(".")
        setattr(net.get_submodule(parent), own, nn.Identity())
    try:
        with torch.inference_mode():
            same = not names or torch.equal(net(x), expected)
    except AttributeError:  # it asks what is no layer any more for its weight
        same = False
    if not same:
        raise ExportError(
            f"{model.task.model.variant} uses the weights of {', '.join(names)} without calling these layers; call them"
        )


def _prove(model: LoadedModel, net: nn.Module, rewrites: list[str]) -> None:
    """Of our families tests prove the rewrites; a network of another make is asked itself, in float64.

    Raises:
        ExportError: it answers otherwise than before.
    """
    spec, x = model.task.model, _noise(model).double()
    expected = copy.deepcopy(model.net).double()(x)
    found = copy.deepcopy(net).double()(x)
    if not (found - expected).abs().max() <= EXACT * expected.abs().max():
        raise ExportError(
            f"the rewrites {', '.join(rewrites)} change what {spec.variant} answers: it uses its layers in other ways "
            "than one after the other"
        )
