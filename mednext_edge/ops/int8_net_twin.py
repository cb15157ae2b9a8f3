"""What the INT8 kernels of `libmednext_cpu` compute, by PyTorch in float64: the twin of a packed `Net8`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mednext_edge.ops.int8_net import Block8, Dense8, Net8
from mednext_edge.ops.net_parts import Form

LARGEST, LARGEST16 = 128, 32767
LARGEST_BIAS = 2**22  # in sums; a larger one is added behind them
CONV = {2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {2: F.conv_transpose2d, 3: F.conv_transpose3d}


def net8_twin(net: Net8, x: Tensor) -> Tensor:
    """[C, *size] -> logits [classes, *size] float64, rounded where the kernels round."""
    streams = [_linear(net.stem.weight.double(), x.double()) + _spread(net.stem.bias, x)]
    for block in net.blocks:
        source = streams[-1]
        if block.form is Form.DOWN:
            streams.append(source)
        elif block.form is Form.UP:
            streams.pop()
        streams[-1] = block_twin(block, source, streams[-1])
    return _linear(net.head.weight.double(), _bf16(streams[0])) + _spread(net.head.bias, x)


def block_twin(block: Block8, stream: Tensor, larger: Tensor) -> Tensor:
    """The stream behind a block, not yet rounded to bfloat16: the INT8 of the next block is made of it as it is.

    Args:
        block: its numbers.
        stream: [C, *size] float64, its input, not yet rounded either.
        larger: of `Form.UP`, the stream that is added.
    """
    x = _int8(stream / block.in_step)
    y = _depthwise(block, x)
    axes = tuple(range(1, y.dim()))
    unit = _spread(_unit(block), y)
    mean, variance = y.mean(axes, keepdim=True), y.var(axes, unbiased=False, keepdim=True)
    scale = 1 / (block.norm_step * (variance + block.eps / unit**2).sqrt())
    normed = _int8((y.round() - mean) * _fifteen_bits(scale))
    lines = _dense(block.expand, normed).round().clamp(-128, 127)
    out = _dense(block.compress, block.table[lines.long() + 128].double())
    if block.form is Form.SAME:
        return out + _bf16(stream) if block.residual else out
    every, apart = slice(None), (slice(None, None, 2),) * net_dims(x)
    if block.form is Form.DOWN:
        return out if block.shortcut is None else out + _bf16(_dense(block.shortcut, x[every, *apart]))
    result = _bf16(larger)
    inner = result[every, *(slice(1, None),) * net_dims(x)]
    if block.shortcut is not None:
        places = inner[every, *apart]
        places.copy_(_bf16(places + _dense(block.shortcut, x)))
    inner += out
    return result


def net_dims(x: Tensor) -> int:
    """Spatial axes of [C, *size]."""
    return x.dim() - 1


def _depthwise(block: Block8, x: Tensor) -> Tensor:
    """In units of 16 bits, not yet rounded."""
    dims, padding = net_dims(x), block.kernel // 2
    weight = block.depthwise.double().unsqueeze(1)
    if block.form is not Form.UP:
        stride = 2 if block.form is Form.DOWN else 1
        y = CONV[dims](x[None], weight, stride=stride, padding=padding, groups=len(x))[0]
        scale = _spread(block.depthwise_scale[0], y)
    else:
        y = TRANSPOSED[dims](x[None], weight, stride=2, padding=padding, groups=len(x))[0]
        scale = torch.empty_like(y)
        for parity, values in enumerate(block.depthwise_scale):
            where = (slice(parity >> (dims - 1 - axis) & 1, None, 2) for axis in range(dims))
            scale[(slice(None), *where)] = _spread(values, y)
    return y * scale / _spread(_unit(block), y)


def _unit(block: Block8) -> Tensor:
    """[C]: so that no sum of the channel leaves 16 bits."""
    bound = block.depthwise.double().abs().flatten(1).sum(1) * LARGEST * block.depthwise_scale.double().amax(0)
    return torch.where(bound > 0, bound / LARGEST16, 1.0)


def _fifteen_bits(scale: Tensor) -> Tensor:
    """As the factors of whole numbers have them, which are multiples of 2^-24 below one half."""
    places = 2.0 ** (15 - torch.frexp(scale).exponent).clamp(16, 24)
    factor = (scale * places).round().clamp(max=LARGEST16)
    return torch.where(scale < 0.5, factor / places, scale)


def _int8(x: Tensor) -> Tensor:
    return x.round().clamp(-LARGEST, LARGEST - 1)


def _dense(layer: Dense8, x: Tensor) -> Tensor:
    scale, bias = layer.scale.double(), layer.bias.double()
    whole = (bias / scale).round()
    bias = torch.where(whole.abs() < LARGEST_BIAS, whole * scale, bias)
    return _linear(layer.weight.double(), x) * _spread(scale, x) + _spread(bias, x)


def _linear(weight: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("oc,c...->o...", weight, x)


def _spread(values: Tensor, x: Tensor) -> Tensor:
    return values.double().view(-1, *(1,) * net_dims(x))


def _bf16(x: Tensor) -> Tensor:
    return x.to(torch.float32).to(torch.bfloat16).double()
