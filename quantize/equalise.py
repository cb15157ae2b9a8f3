"""Outlier channels of the residual streams brought to size before anything is calibrated: exact in float, kind to INT8.

An input has one INT8 scale for all of its channels, so that small ones get few levels beside large ones. In a MedNeXt
every residual stream is read by depthwise convolutions, whose weights have a scale for each channel: a factor that the
writers of a stream put on a channel and its readers take off again costs nothing there. Factors are powers of two, so
that the network computes the same numbers, bit for bit. Cross-layer equalisation (Nagel et al., arXiv 1906.04721) has
the same idea for pairs of layers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from mednext_edge.fusion.cpu_training import use_cpu_training
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.models.mednext import DownBlock, MedNeXt, UpBlock
from mednext_edge.quantize.calibration import CalibrationSet
from mednext_edge.quantize.kinds import TRANSPOSED
from mednext_edge.quantize.sensitivity import crop

NAME = "outlier-channels"
PATCHES, SIDE = 4, 64
"""Sizes of channels are seen on the middles of a few patches."""
LEAST, MOST = 2, 12
"""Octaves that a channel is off by at least to be scaled, and is scaled by at most. Those that are off by less lose
little, and scaling them makes the rows of dense readers uneven instead."""


@dataclass(frozen=True)
class Stream:
    """The residual sum at one resolution of a MedNeXt, from the encoder and, through the skip, in the decoder.

    Attributes:
        writers: names of the convolutions whose outputs are added up in it.
        readers: names of those that read it.
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]


Octaves = tuple[tuple[int, ...], ...]
"""By how many powers of two each channel of each stream is scaled; nothing at all where nothing is to be scaled."""


def equalise(model: LoadedModel, calibration: CalibrationSet) -> LoadedModel:
    """The same function without outliers among the channels of any residual stream.

    Args:
        model: in training form; of another family than MedNeXt, or trained in INT8, it is given back as it is.
        calibration: patches to see the sizes on.
    """
    return scaled(model, octaves_of(model, calibration))


def octaves_of(model: LoadedModel, calibration: CalibrationSet) -> Octaves:
    """What `equalise` would scale by."""
    if not isinstance(model.net, MedNeXt) or model.rewrites or model.quantization is not None:
        return ()
    readers = [stream.readers for stream in streams(model.net)]
    found = [_octaves(size) for size in _sizes(model.net, readers, calibration)]
    return tuple(tuple(map(int, octaves)) for octaves in found) if any(map(torch.any, found)) else ()


def scaled(model: LoadedModel, octaves: Octaves) -> LoadedModel:
    """A model with its streams scaled, and the same function."""
    if not octaves:
        return model
    net = copy.deepcopy(model.net)
    assert isinstance(net, MedNeXt)
    for stream, each in zip(streams(net), octaves, strict=True):
        scale(net, stream, torch.tensor(each, dtype=torch.float64))
    return replace(model, net=net, rewrites=(NAME,))


def streams(net: MedNeXt) -> Iterator[Stream]:
    """All residual streams, from full resolution down to the bottleneck."""
    levels = net.config.levels

    def inner(stage: str, conv: str) -> list[str]:
        return [f"{stage}.{name}.{conv}" for name, _ in net.get_submodule(stage).named_children()]

    def shortcut(name: str, conv: str) -> list[str]:
        block = net.get_submodule(name)
        assert isinstance(block, (DownBlock, UpBlock))
        return [f"{name}.{conv}", *([f"{name}.res_conv"] if block.residual else [])]

    for level in range(levels + 1):
        stages = ["bottleneck"] if level == levels else [f"enc_block_{level}", f"dec_block_{level}"]
        writers = ["stem"] if level == 0 else shortcut(f"down_{level - 1}", "conv3")
        readers = [f"out_{level}.conv_out"] if hasattr(net, f"out_{level}") else []
        for stage in stages:
            writers += inner(stage, "conv3")
            readers += inner(stage, "conv1")
        if level < levels:
            writers += shortcut(f"up_{level}", "conv3")
            readers += shortcut(f"down_{level}", "conv1")
        if level > 0:
            readers += shortcut(f"up_{level - 1}", "conv1")
        yield Stream(tuple(writers), tuple(readers))


@torch.no_grad()
def scale(net: nn.Module, stream: Stream, octaves: Tensor) -> None:
    """Make channel c of a stream 2 ** octaves[c] times as large, in place; the network's answer stays."""
    factor = torch.exp2(octaves)
    for name in stream.writers:
        conv = net.get_submodule(name)
        _multiply(conv, factor, axis=1 if isinstance(conv, TRANSPOSED) else 0)
        if isinstance(conv.bias, Tensor):
            conv.bias.mul_(factor.to(conv.bias.dtype))
    for name in stream.readers:
        conv = net.get_submodule(name)
        # Depthwise weights begin with the input's channel, transposed or not; dense ones only if transposed.
        first = isinstance(conv, TRANSPOSED) or cast(int, conv.groups) > 1
        _multiply(conv, 1 / factor, axis=0 if first else 1)


def _multiply(conv: nn.Module, factor: Tensor, axis: int) -> None:
    weight = cast(Tensor, conv.weight)
    shape = [1] * weight.dim()
    shape[axis] = -1
    weight.mul_(factor.to(weight.dtype).view(shape))


def _octaves(size: Tensor) -> Tensor:
    """By how many powers of two each channel is to be scaled towards the middle one."""
    seen = size > 0
    if not seen.any():
        return torch.zeros_like(size)
    octaves = torch.where(seen, torch.log2(size[seen].median() / size), 0.0).round()
    return torch.where(octaves.abs() >= LEAST, octaves, 0.0).clamp(-MOST, MOST)


@torch.inference_mode()
def _sizes(net: MedNeXt, readers: list[tuple[str, ...]], calibration: CalibrationSet) -> list[Tensor]:
    """Of each stream, the root mean square of every channel: the largest of all places where it is read."""
    watched = copy.deepcopy(net).float().eval()
    watched.do_ds = False
    use_cpu_training(watched)
    size = tuple(min(n, max(SIDE, 2 * net.config.divisor)) for n in calibration.patches[0].shape[2:])
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> None:
        def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            found = x.double().square().mean((0, *range(2, x.dim())))
            sums[name] = sums.get(name, torch.zeros_like(found)) + found

        watched.get_submodule(name).register_forward_pre_hook(see)

    for names in readers:
        for name in names:
            watch(name)
    for patch in calibration.patches[:PATCHES]:
        watched(torch.from_numpy(crop(patch, size)))
    return [torch.stack([sums[name] for name in names if name in sums]).amax(0).sqrt() for names in readers]
