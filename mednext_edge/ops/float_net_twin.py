"""What the float kernels of `libmednext_cpu` compute, by PyTorch in float64: the twin of a packed `FloatNet`.

Nothing is rounded here: in float32 the kernels differ by their roundings, in bfloat16 as much as PyTorch's does.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mednext_edge.ops.float_net import FloatBlock, FloatNet
from mednext_edge.ops.net_parts import Dense, Form
from mednext_edge.ops.parity import CONV, TWIN


def float_twin(net: FloatNet, x: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """[C, *size] -> logits [classes, *size], computed by PyTorch in `dtype`."""
    streams = [_dense(net.stem, x.to(dtype))]
    for block in net.blocks:
        source = streams[-1]
        if block.form is Form.DOWN:
            streams.append(source)
        elif block.form is Form.UP:
            streams.pop()
        streams[-1] = _block(block, source, streams[-1])
    return _dense(net.head, streams[0])


def _block(block: FloatBlock, x: Tensor, larger: Tensor) -> Tensor:
    """The stream behind a block; `larger` is what an up block adds to."""
    y = _depthwise(block, x)
    normed = F.instance_norm(y[None], eps=block.eps)[0]
    out = _dense(block.compress, F.gelu(_dense(block.expand, normed)))
    if block.form is Form.SAME:
        return x + out if block.residual else out
    apart = (slice(None), *(slice(None, None, 2),) * block.dims)
    if block.form is Form.DOWN:
        return out if block.shortcut is None else out + _dense(block.shortcut, x[apart])
    if block.shortcut is not None:
        out[apart] += _dense(block.shortcut, x)
    return larger + F.pad(out, (1, 0) * block.dims)


def _depthwise(block: FloatBlock, x: Tensor) -> Tensor:
    weight, padding = block.depthwise.to(x.dtype).unsqueeze(1), block.kernel // 2
    if block.form is Form.UP:
        return TWIN[block.dims](x[None], weight, stride=2, padding=padding, groups=len(x))[0]
    stride = 2 if block.form is Form.DOWN else 1
    return CONV[block.dims](x[None], weight, stride=stride, padding=padding, groups=len(x))[0]


def _dense(layer: Dense, x: Tensor) -> Tensor:
    bias = layer.bias.to(x.dtype).view(-1, *(1,) * (x.dim() - 1))
    return torch.einsum("oc,c...->o...", layer.weight.to(x.dtype), x) + bias
