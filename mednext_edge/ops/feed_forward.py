"""The second half of a MedNeXt block as matrix products of PyTorch, from statistics that are known: forward, gradients.

Norm, expansion, GELU and compression work on every voxel alone, so the hidden tensor, the largest of the block, is
made for some voxels at a time and never whole: neither on the way forward nor, computed a second time, on the way
back. Activations are read and written channels-last; statistics and sums of gradients are float32, or float64 for
float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1 << 24
"""Hidden elements at a time: enough to fill a GPU, few against the tensors that are kept."""


def feed_forward(
    a: Tensor,
    mean: Tensor,
    moment: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    residual: Tensor | None,
    front: int,
) -> Tensor:
    """pad(w2 gelu(w1 norm(a) + b1) + b2) + residual, see `ops.block3d`.

    Args:
        a: [N, C, *m].
        mean, moment: [N, C], mean and sum of squared distances from it, over the voxels of a.
        gamma, beta: [C], of the norm.
        eps: is added to the variance.
        w1, b1: [hidden, C, 1, 1, 1] and [hidden].
        w2, b2: [out, hidden, 1, 1, 1] and [out].
        residual: [N, out, *(m + front)].
        front: zeros in front of every axis.

    Returns:
        [N, out, *(m + front)], channels-last.
    """
    scale = _rstd(a, moment, eps)
    scale = scale if gamma is None else scale * gamma
    shift = -mean * scale if beta is None else beta - mean * scale
    w1, w2, b1, b2 = w1.flatten(1), w2.flatten(1), _cast(b1, a.dtype), _cast(b2, a.dtype)
    rows = _rows(a)
    y = torch.empty((*rows.shape[:2], len(w2)), dtype=a.dtype, device=a.device)
    for part in _parts(rows, len(w1)):
        normal = torch.addcmul(shift[:, None], rows[:, part].to(scale.dtype), scale[:, None]).to(a.dtype)
        y[:, part] = F.linear(F.gelu(F.linear(normal, w1, b1)), w2, b2)
    image = F.pad(_image(y, a), (front, 0) * 3) if front else _image(y, a)
    return image if residual is None else image.add_(residual)


def gradients(
    g: Tensor,
    a: Tensor,
    mean: Tensor,
    moment: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    front: int,
) -> tuple[Tensor, ...]:
    """What a gradient of the output of `feed_forward` is for what it was computed from, the statistics of a included.

    Args:
        g: gradient of the output, [N, out, *(m + front)]; that of the residual is g itself.
        a, mean, moment, gamma, beta, eps, w1, b1, w2, front: as in `feed_forward`.

    Returns:
        The gradients of a (channels-last, in its type), gamma, beta, w1 (in its type), b1, w2 (in its type) and b2;
        those of the vectors in the type of the statistics, and given for absent vectors too.
    """
    rows, slopes = _rows(a), _rows(g[:, :, front:, front:, front:])
    wide, voxels = mean.dtype, rows.shape[1]
    rstd = _rstd(a, moment, eps)
    expand, compress, b1 = w1.flatten(1), w2.flatten(1), _cast(b1, a.dtype)
    dexpand, dcompress = torch.zeros_like(expand, dtype=wide), torch.zeros_like(compress, dtype=wide)
    db1, db2 = dexpand.new_zeros(len(expand)), dexpand.new_zeros(len(compress))
    along_one, along_x = torch.zeros_like(mean), torch.zeros_like(mean)
    da = torch.empty_like(rows)

    def standardised(part: slice) -> Tensor:
        return (rows[:, part].to(wide) - mean[:, None]) * rstd[:, None]

    for part in _parts(rows, len(expand)):
        x, slope = standardised(part), slopes[:, part]
        normal = x if gamma is None else x * gamma
        normal = (normal if beta is None else normal + beta).to(a.dtype)
        before = F.linear(normal, expand, b1)
        dbefore = torch.ops.aten.gelu_backward(slope @ compress, before)
        dnormal = dbefore @ expand
        dcompress += slope.flatten(0, 1).mT @ F.gelu(before).flatten(0, 1)
        dexpand += dbefore.flatten(0, 1).mT @ normal.flatten(0, 1)
        db2 += slope.sum((0, 1), dtype=wide)
        db1 += dbefore.sum((0, 1), dtype=wide)
        along_one += dnormal.sum(1, dtype=wide)
        along_x += (dnormal * x).sum(1)
        da[:, part] = dnormal  # until the sums over all voxels are known
    scale = rstd if gamma is None else rstd * gamma
    for part in _parts(rows, len(expand)):
        inside = da[:, part] - along_one[:, None] / voxels - standardised(part) * (along_x[:, None] / voxels)
        da[:, part] = inside * scale[:, None]
    weights = dexpand.view_as(w1).to(w1.dtype), db1, dcompress.view_as(w2).to(w2.dtype), db2
    return _image(da, a), along_x.sum(0), along_one.sum(0), *weights


def _rstd(a: Tensor, moment: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(moment / a.shape[2:].numel() + eps)


def _rows(x: Tensor) -> Tensor:
    """[N, C, *n] -> [N, voxels, C]; nothing moves when x is channels-last."""
    return x.permute(0, 2, 3, 4, 1).flatten(1, 3)


def _image(rows: Tensor, like: Tensor) -> Tensor:
    """[N, voxels, C] -> [N, C, *n], channels-last, with the sizes of another."""
    return rows.view(len(rows), *like.shape[2:], rows.shape[2]).permute(0, 4, 1, 2, 3)


def _parts(rows: Tensor, hidden: int) -> Iterator[slice]:
    step = max(1, CHUNK // (hidden * max(1, len(rows))))
    return (slice(start, start + step) for start in range(0, rows.shape[1], step))


def _cast(vector: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if vector is None else vector.to(dtype)
