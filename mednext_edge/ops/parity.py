"""Stride-2 transposed depthwise convolution as one small convolution per output parity.

Output voxel o = 2m + p of an axis takes the taps t with t = p + pad (mod 2), from input m + (p + pad - t) / 2.
So each of the 2**d parities is a dense stride-1 depthwise convolution with about half the taps along
each axis; interleaving them (depth to space) gives the transposed convolution. The reference twin is
`torch.nn.functional.conv_transpose3d` (`conv_transpose2d`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

CONV = {2: F.conv2d, 3: F.conv3d}
TWIN = {2: F.conv_transpose2d, 3: F.conv_transpose3d}


def axis_taps(kernel: int, parity: int) -> list[int]:
    """The taps of an axis that outputs of a parity take, in the order of rising input positions: falling ones."""
    return [t for t in range(kernel) if (t - parity - kernel // 2) % 2 == 0][::-1]


def parity_taps(kernel: int, dims: int) -> list[tuple[list[int], ...]]:
    """For each parity, in the order of `parity_weights`, which taps its sub-kernel has along every axis."""
    return [tuple(axis_taps(kernel, p) for p in parity) for parity in itertools.product((0, 1), repeat=dims)]


def parity_weights(weight: Tensor) -> list[tuple[Tensor, tuple[int, ...]]]:
    """The sub-kernels of a transposed depthwise kernel.

    Args:
        weight: [C, 1, *k], odd k, of a transposed convolution with stride 2 and padding k // 2.

    Returns:
        For each parity, in row-major order of (p_z, p_y, p_x): the convolution kernel [C, 1, *taps] and
        the zero padding as `F.pad` takes it (last axis first; front, back), chosen so that every
        parity has n outputs for n inputs.
    """
    dims = weight.dim() - 2
    result = []
    for parity in itertools.product((0, 1), repeat=dims):
        sub, padding = weight, []
        for axis, p in enumerate(parity):
            k = weight.shape[2 + axis]
            pad = k // 2
            taps = axis_taps(k, p)
            if not taps:  # kernel 1 reaches no odd voxel: zeros, as one tap of zero
                sub = torch.zeros_like(sub.narrow(2 + axis, 0, 1))
                padding.append((0, 0))
                continue
            offsets = [(p + pad - t) // 2 for t in taps]
            sub = sub.index_select(2 + axis, torch.tensor(taps, device=weight.device))
            padding.append((-offsets[0], offsets[-1]))
        result.append((sub.contiguous(), tuple(n for pair in reversed(padding) for n in pair)))
    return result


def interleave(parts: list[Tensor]) -> Tensor:
    """2**d tensors [N, C, *n], row-major by parity -> [N, C, *2n]."""
    n, c, *spatial = parts[0].shape
    dims = len(spatial)
    # [N, 2, .., 2, C, *n] -> [N, C, n_z, 2, n_y, 2, ...]: the blocks-first depth-to-space.
    stacked = torch.cat(parts, 1).reshape(n, *(2,) * dims, c, *spatial)
    order = [0, 1 + dims]
    for axis in range(dims):
        order += [2 + dims + axis, 1 + axis]
    return stacked.permute(order).reshape(n, c, *(2 * s for s in spatial))


def conv_transpose_parity(x: Tensor, weights: Sequence[tuple[Tensor, tuple[int, ...]]]) -> Tensor:
    """Stride-2 transposed depthwise convolution, [N, C, *n] -> [N, C, *2n-1], from `parity_weights`."""
    dims = x.dim() - 2
    parts = [CONV[dims](F.pad(x, padding), w, groups=x.shape[1]) for w, padding in weights]
    full = interleave(parts)
    # The last voxel of each axis would need an input beyond the image; it does not exist in the twin.
    index = (slice(None), slice(None), *(slice(0, -1),) * dims)
    return full[index]


def conv_transpose_reference(x: Tensor, weight: Tensor) -> Tensor:
    """The twin: what `conv_transpose_parity` computes, from the transposed kernel [C, 1, *k]."""
    pad = weight.shape[-1] // 2
    return TWIN[x.dim() - 2](x, weight, stride=2, padding=pad, groups=x.shape[1])
