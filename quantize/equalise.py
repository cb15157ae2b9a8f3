"""Outlier channels brought to size before anything is calibrated: the same function in float, kind to INT8.

An input has one INT8 scale for all of its channels, so that small ones get few levels beside large ones. A MedNeXt has
two places where a channel may be scaled for nothing, because the weights there have a scale for each channel:

- Its residual streams, which depthwise convolutions read: what the writers of a stream put on a channel, its readers
  take off again. Factors are powers of two, so that the network computes the same numbers, bit for bit.
- The inputs of norms of each channel, which depthwise convolutions write: the norm takes any factor out again, but for
  its eps. Channels whose variance does not dwarf it are left alone.

Cross-layer equalisation (Nagel et al., arXiv 1906.04721) has the same idea for pairs of layers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from mednext_edge.fusion.cpu_training import use_cpu_training
from mednext_edge.fusion.instance_norm import is_per_channel
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.models.mednext import Block, DownBlock, MedNeXt, UpBlock
from mednext_edge.quantize.calibration import CalibrationSet
from mednext_edge.quantize.kinds import TRANSPOSED
from mednext_edge.quantize.sensitivity import crop

NAME = "outlier-channels"
PATCHES, SIDE = 4, 64
"""Sizes of channels are seen on the middles of a few patches."""
LEAST, MOST = 2, 12
"""Octaves that a channel is off by at least to be scaled, and is scaled by at most. Those that are off by less lose
little, and scaling them makes the rows of dense readers uneven instead."""
LEAST_BEFORE_NORM = 1
"""Norms read nothing else, and so nothing becomes uneven."""
DWARFED = 2.0**13
"""A norm's eps, this many times smaller than a variance, changes the norm by less than float16 can tell."""


@dataclass(frozen=True)
class Stream:
    """A tensor whose channels may be scaled: the sum of some convolutions' outputs.

    Attributes:
        writers: names of the convolutions.
        readers: names of the layers that read it: convolutions, or one norm of each channel.
        eps: of the norm.
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    eps: float | None = None


Octaves = tuple[tuple[int, ...], ...]
"""By how many powers of two each channel of each tensor is scaled; nothing at all where nothing is to be scaled."""


def equalise(model: LoadedModel, calibration: CalibrationSet) -> LoadedModel:
    """The same function without outliers among the channels of residual streams and norms' inputs.

    Args:
        model: in training form; of another family than MedNeXt, or trained in INT8, it is given back as it is.
        calibration: patches to see the sizes on.
    """
    return scaled(model, octaves_of(model, calibration))


def octaves_of(model: LoadedModel, calibration: CalibrationSet) -> Octaves:
    """What `equalise` would scale by."""
    if not isinstance(model.net, MedNeXt) or model.rewrites or model.quantization is not None:
        return ()
    places = _places(model.net)
    found = [_octaves(place, size) for place, size in zip(places, _sizes(model.net, places, calibration), strict=True)]
    return tuple(tuple(map(int, octaves)) for octaves in found) if any(map(torch.any, found)) else ()


def scaled(model: LoadedModel, octaves: Octaves) -> LoadedModel:
    """A model with its channels scaled, and the same function."""
    if not octaves:
        return model
    net = copy.deepcopy(model.net)
    assert isinstance(net, MedNeXt)
    for stream, each in zip(_places(net), octaves, strict=True):
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


def norm_inputs(net: MedNeXt) -> Iterator[Stream]:
    """The inputs of all norms of each channel."""
    for name, block in net.named_modules():
        if isinstance(block, Block) and is_per_channel(block.norm):
            yield Stream((f"{name}.conv1",), (f"{name}.norm",), cast(float, block.norm.eps))


def _places(net: MedNeXt) -> list[Stream]:
    return [*streams(net), *norm_inputs(net)]


@torch.no_grad()
def scale(net: nn.Module, stream: Stream, octaves: Tensor) -> None:
    """Make channel c of a stream 2 ** octaves[c] times as large, in place; the network's answer stays."""
    factor = torch.exp2(octaves)
    for name in stream.writers:
        conv = net.get_submodule(name)
        # Depthwise weights begin with their channel, transposed or not; dense transposed ones with the input's.
        _multiply(conv, factor, axis=1 if isinstance(conv, TRANSPOSED) and conv.groups == 1 else 0)
        if isinstance(conv.bias, Tensor):
            conv.bias.mul_(factor.to(conv.bias.dtype))
    for name in stream.readers if stream.eps is None else ():
        conv = net.get_submodule(name)
        first = isinstance(conv, TRANSPOSED) or cast(int, conv.groups) > 1
        _multiply(conv, 1 / factor, axis=0 if first else 1)


def _multiply(conv: nn.Module, factor: Tensor, axis: int) -> None:
    weight = cast(Tensor, conv.weight)
    shape = [1] * weight.dim()
    shape[axis] = -1
    weight.mul_(factor.to(weight.dtype).view(shape))


@dataclass(frozen=True)
class _Size:
    """How large each channel of a tensor is, [C]: mean square, and the least variance in any patch."""

    square: Tensor
    variance: Tensor


def _octaves(place: Stream, size: _Size) -> Tensor:
    """By how many powers of two each channel is to be scaled towards the middle one."""
    seen = size.square > 0
    if not seen.any():
        return torch.zeros_like(size.square)
    octaves = torch.where(seen, torch.log2(size.square[seen].median() / size.square) / 2, 0.0).round()
    if place.eps is not None:
        # Neither before nor after may the eps be seen.
        room = torch.log2(size.variance / (DWARFED * place.eps)) / 2
        octaves = torch.where(room >= 0, torch.maximum(octaves, (-room).ceil()), 0.0)
    least = LEAST if place.eps is None else LEAST_BEFORE_NORM
    return torch.where(octaves.abs() >= least, octaves, 0.0).clamp(-MOST, MOST)


@torch.inference_mode()
def _sizes(net: MedNeXt, places: list[Stream], calibration: CalibrationSet) -> list[_Size]:
    """Of each tensor the sizes of its channels: the largest of all layers that read it."""
    watched = copy.deepcopy(net).float().eval()
    watched.do_ds = False
    use_cpu_training(watched)
    size = tuple(min(n, max(SIDE, 2 * net.config.divisor)) for n in calibration.patches[0].shape[2:])
    squares: dict[str, Tensor] = {}
    variances: dict[str, Tensor] = {}

    def watch(name: str, bias: Tensor | None) -> None:
        def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].double().flatten(2)
            mean = x.mean(-1)
            variance = (x - mean.unsqueeze(-1)).square().mean((0, 2))
            # The deploy form has no bias in front of a norm that takes it out.
            mean = mean if bias is None else mean - bias
            found = variance + mean.square().mean(0)
            squares[name] = squares.get(name, torch.zeros_like(found)) + found
            variances[name] = torch.minimum(variances.get(name, variance), variance)

        watched.get_submodule(name).register_forward_pre_hook(see)

    for place in places:
        bias = watched.get_submodule(place.writers[0]).bias if place.eps is not None else None
        for name in place.readers:
            watch(name, cast("Tensor | None", bias))
    for patch in calibration.patches[:PATCHES]:
        watched(torch.from_numpy(crop(patch, size)))
    result = []
    for place in places:
        read = [name for name in place.readers if name in squares]
        square = torch.stack([squares[name] for name in read]).amax(0)
        result.append(_Size(square, torch.stack([variances[name] for name in read]).amin(0)))
    return result
