"""From the plan of a MedNeXt's INT8 to the numbers of our native CPU engine.

Its thresholds are those of the Q/DQ graph, and so are its weights. Finer is the hidden tensor: it has 256 levels for
what GELU gives, -0.17 and more, of which signed INT8 uses some 140. Rougher is the input of GELU: it is rounded to 256
lines, which reach from where GELU is nearly zero to where it is at the threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mednext_edge.errors import ExportError
from mednext_edge.fusion.instance_norm import InstanceNorm
from mednext_edge.fusion.native import check_native, float_dense, form_of, mednext_blocks
from mednext_edge.fusion.parity import ParityConvTranspose
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.models.mednext import Block, DownBlock, UpBlock
from mednext_edge.ops.int8_net import LINES, Block8, Dense8, Net8
from mednext_edge.ops.parity import parity_taps
from mednext_edge.quantize.flavour import LEVELS
from mednext_edge.quantize.plan import Plan
from mednext_edge.quantize.qdq import quantize_weight
from mednext_edge.quantize.ranges import ActivationRange

LOWEST = 0.17
"""GELU gives nothing below its negative."""


def int8_net(model: LoadedModel, plan: Plan) -> Net8:
    """The numbers of the engine.

    Args:
        model: a MedNeXt in deploy form, its transposed convolutions as parities.
        plan: of its INT8.

    Raises:
        ExportError: the network has a part that the engine does not know, or the plan leaves a layer in float.
    """
    net = check_native(model)
    blocks = mednext_blocks(net)
    missing = [
        f"{name}.{layer}"
        for name, _ in blocks
        for layer in ("conv1", "conv2", "conv3")
        if f"{name}.{layer}" not in plan.ranges or f"{name}.{layer}" in plan.float_layers
    ]
    if missing:
        raise ExportError(
            f"the native engine has no float form of {', '.join(missing[:3])}{' and more' if missing[3:] else ''}; "
            "quantise all layers, or export with --target openvino"
        )
    head = net.get_submodule("out_0.conv_out")
    return Net8(float_dense(net.stem), tuple(_block(name, block, plan) for name, block in blocks), float_dense(head))


def _block(name: str, block: Block, plan: Plan) -> Block8:
    ranges = {layer: plan.ranges[f"{name}.{layer}"] for layer in ("conv1", "conv2", "conv3")}
    steps = {layer: seen.threshold / LEVELS for layer, seen in ranges.items()}
    levels = plan.flavour.weight_levels
    depthwise, scale = _depthwise(block.conv1, levels)
    assert isinstance(block.norm, InstanceNorm)
    hidden = HiddenLevels.reaching(ranges["conv3"].threshold)
    expand = _dense8(block.conv2, levels, ranges["conv2"], steps["conv2"])
    compress = _dense8(block.conv3, levels, ranges["conv3"], hidden.step)
    zero = hidden.zero * compress.scale.double() * compress.weight.double().sum(1)
    bias, shortcut = compress.bias - zero, None
    if isinstance(block, (DownBlock, UpBlock)) and block.residual:
        shortcut = _dense8(block.res_conv, levels, ranges["conv1"], steps["conv1"])
        if isinstance(block, UpBlock):
            # A transposed convolution adds its bias to every voxel, also to those that none of its weights reaches.
            assert isinstance(block.res_conv.bias, Tensor)
            bias = bias + block.res_conv.bias
            shortcut = Dense8(shortcut.weight, shortcut.scale, (shortcut.bias - block.res_conv.bias).contiguous())
    return Block8(
        form=form_of(block),
        residual=block.residual,
        in_step=steps["conv1"],
        depthwise=depthwise,
        depthwise_scale=(scale * steps["conv1"]).float().contiguous(),
        eps=block.norm.eps,
        norm_step=steps["conv2"],
        expand=Dense8(
            expand.weight,
            (expand.scale / hidden.line).float(),
            ((expand.bias - hidden.low) / hidden.line - 128).float(),
        ),
        table=hidden.table(),
        compress=Dense8(compress.weight, compress.scale, bias.float()),
        shortcut=shortcut,
    )


@dataclass(frozen=True)
class HiddenLevels:
    """How the hidden tensor is rounded, in front of GELU and behind it.

    Attributes:
        step, zero: level h of the hidden tensor, 0..255, is (h - zero) * step.
        low, line: line l of the table, -128..127, is low + (l + 128) * line.
    """

    step: float
    zero: int
    low: float
    line: float

    @classmethod
    def reaching(cls, threshold: float) -> HiddenLevels:
        """With the last level at `threshold`, |x| that the plan clips at."""
        step = (threshold + LOWEST) / (LINES - 2)
        zero = math.ceil(LOWEST / step)
        high = _solve(threshold, 0.0, threshold + 10)
        # GELU falls down to -0.75 and rises from there: where it is half a level below zero first.
        low = -_solve(-step / 2, 0.7518, 12.0, -1) if step / 2 < LOWEST - 1e-3 else 0.0
        # One of the lines is 0, which stays what it is.
        below = min(math.ceil((LINES - 1) * -low / (high - low)), LINES - 2)
        line = max(-low / max(below, 1), high / (LINES - 1 - below))
        return cls(step, zero, -below * line, line)

    def table(self) -> Tensor:
        """[256] uint8."""
        x = self.low + self.line * torch.arange(LINES, dtype=torch.float64)
        level = (nn.functional.gelu(x) / self.step).round() + self.zero
        return level.clamp(0, LINES - 1).to(torch.uint8)


def _solve(value: float, left: float, right: float, sign: int = 1) -> float:
    """x between `left` and `right` where GELU of `sign` x, which rises there, is `value`."""
    for _ in range(60):
        middle = (left + right) / 2
        x = sign * middle
        if 0.5 * x * math.erfc(-x / math.sqrt(2)) < value:
            left = middle
        else:
            right = middle
    return (left + right) / 2


def _depthwise(layer: nn.Module, levels: int) -> tuple[Tensor, Tensor]:
    """Weights [C, *kernel] int8, and their scales [parities, C] float64."""
    if not isinstance(layer, ParityConvTranspose):
        assert isinstance(layer.weight, Tensor)
        integers, scale = quantize_weight(layer.weight.detach().numpy(), levels)
        return torch.from_numpy(integers).squeeze(1).contiguous(), torch.from_numpy(scale).double()[None]
    kernel = layer.kernel
    whole = torch.zeros(layer.get_parameter("weight_0").shape[0], *(kernel,) * layer.dims, dtype=torch.int8)
    scales = []
    for (part, _), taps in zip(layer.named_parameters(), parity_taps(kernel, layer.dims), strict=True):
        integers, scale = quantize_weight(layer.get_parameter(part).detach().numpy(), levels)
        scales.append(torch.from_numpy(scale).double())
        values = torch.from_numpy(integers).squeeze(1)
        places = torch.meshgrid(*(torch.tensor(t) for t in taps), indexing="ij")
        whole.index_put_((torch.arange(len(whole)).view(-1, *(1,) * layer.dims), *places), values)
    return whole, torch.stack(scales)


def _dense8(layer: nn.Module, levels: int, seen: ActivationRange, step: float) -> Dense8:
    """What it gives of inputs in units of `step`; the mean that rounding takes from it is given back."""
    assert isinstance(layer.weight, Tensor) and isinstance(layer.bias, Tensor)
    weight = layer.weight.detach()
    if isinstance(layer, (nn.ConvTranspose2d, nn.ConvTranspose3d)):
        weight = weight.transpose(0, 1)
    matrix = weight.flatten(1)
    integers, scale = quantize_weight(matrix.numpy(), levels)
    whole, unit = torch.from_numpy(integers), torch.from_numpy(scale).double()
    bias = layer.bias.detach().double()
    if seen.mean is not None:
        bias = bias + (matrix.double() - whole * unit[:, None]) @ seen.mean.double()
    return Dense8(whole.contiguous(), (unit * step).float(), bias.float())
