"""The forms of an up block in OpenVINO, one beside the other: transposed, parities, and parities put together last.

    python benchmarks/up_block_forms.py [--side 64] [--precision bf16] [--mean M] [--rounds N] --out FILE

Put together last: the parities of the transposed convolution stay tensors of their own through norm, expansion and
compression, which leaves half the channels; the residual, which one parity alone has, is added there by a plain
convolution; zeros in front and interleaving come at the end. Its statistics are sums over all parities. Float alone:
`--precision` fp32 or bf16. `error` is the distance from float64, root mean square over that of the answer.
"""

from __future__ import annotations

import copy
import itertools
import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from peers.networks import network
from torch import Tensor, nn
from torch.nn import functional as F

from mednext_edge.environment import environment
from mednext_edge.evaluation.ratios import median_ratio
from mednext_edge.export import openvino  # noqa: F401  # puts itself into the table
from mednext_edge.export.graph import to_onnx
from mednext_edge.export.targets import TARGETS, Job
from mednext_edge.export.tune_part import model_of, noise
from mednext_edge.export.tune_race import milliseconds
from mednext_edge.fusion import fuse
from mednext_edge.fusion.instance_norm import InstanceNorm
from mednext_edge.fusion.parity import transposed_blocks, use_parity
from mednext_edge.models.mednext import UpBlock
from mednext_edge.ops.parity import interleave, parity_weights
from mednext_edge.runtime.session import Array

REFERENCE = "parity"


class JoinedLast(nn.Module):
    """A fused up block, [N, C, *n] -> [N, C / 2, *2n]."""

    def __init__(self, block: UpBlock) -> None:
        super().__init__()
        assert isinstance(block.conv1, nn.ConvTranspose3d) and isinstance(block.norm, InstanceNorm)
        assert isinstance(block.res_conv, nn.ConvTranspose3d) and isinstance(block.conv3, nn.Conv3d)
        self.eps = block.norm.eps
        self.expand, self.act, self.compress = block.conv2, block.act, copy.deepcopy(block.conv3)
        self.parities = list(itertools.product((0, 1), repeat=3))
        self.paddings: list[tuple[int, ...]] = []
        for i, (weight, padding) in enumerate(parity_weights(block.conv1.weight.detach())):
            self.register_buffer(f"weight_{i}", weight)
            # The last result of an odd parity does not exist.
            short = [n - p * (j % 2) for j, (n, p) in enumerate(zip(padding, self._odd(i), strict=True))]
            self.paddings.append(tuple(short))
        self.register_buffer("residual", block.res_conv.weight.detach().transpose(0, 1).contiguous())
        assert self.compress.bias is not None and block.res_conv.bias is not None
        with torch.no_grad():
            self.compress.bias += block.res_conv.bias

    def _odd(self, i: int) -> tuple[int, ...]:
        """Of every number of a padding, whether its axis is odd."""
        return tuple(p for p in reversed(self.parities[i]) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        parts = [
            F.conv3d(F.pad(x, padding), self.get_buffer(f"weight_{i}"), groups=x.shape[1])
            for i, padding in enumerate(self.paddings)
        ]
        count = float(np.prod([2 * n - 1 for n in x.shape[2:]]))
        axes = (2, 3, 4)
        mean = cast(Tensor, sum(part.sum(axes, keepdim=True) for part in parts)) / count
        squares = cast(Tensor, sum(part.square().sum(axes, keepdim=True) for part in parts)) / count
        scale = torch.rsqrt(squares - mean * mean + self.eps)
        done = [self.compress(self.act(self.expand((part - mean) * scale))) for part in parts]
        done[0] = done[0] + F.conv3d(x, self.get_buffer("residual"))
        # A zero in front of an axis makes odd places of even ones; the parities that are odd begin with it.
        padded = [
            F.pad(part, [p * (1 - j % 2) for j, p in enumerate(self._odd(i))]) if i else part
            for i, part in enumerate(done)
        ]
        return interleave(padded[::-1])


def forms_of(block: UpBlock) -> dict[str, nn.Module]:
    """All forms of a fused up block."""
    parity = copy.deepcopy(block)
    use_parity(parity)
    return {"transposed": block, REFERENCE: parity, "joined last": JoinedLast(block)}


def _check_equal(forms: dict[str, nn.Module], channels: int) -> None:
    small = torch.randn(1, channels, 6, 5, 4, dtype=torch.float64)
    with torch.inference_mode():
        answers = {name: form(small) for name, form in forms.items()}
    for name, answer in answers.items():
        apart = float((answer - answers["transposed"]).abs().max() / answer.abs().max())
        if not apart < 1e-10:
            raise RuntimeError(f"the form {name!r} is {apart} off the transposed one")


def _distance(answer: Array, exact: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.square(answer - exact).mean() / np.square(exact).mean()))


def main(
    out: Annotated[Path, typer.Option(help="JSON.")],
    channels: Annotated[int, typer.Option(help="Of the input; the last up block of S has 64.")] = 64,
    side: Annotated[int, typer.Option(help="Voxels along each axis of the input.")] = 64,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "bf16",
    mean: Annotated[float, typer.Option(help="Of the input, whose standard deviation is 1.")] = 0.0,
    rounds: Annotated[int, typer.Option(min=1)] = 25,
) -> None:
    torch.manual_seed(0)
    model = fuse(network("mednext-S-k3", (2 * side,) * 3), optional=())
    block = next(
        block for _, block in transposed_blocks(model.net) if cast(nn.Conv3d, block.conv2).in_channels == channels
    )
    forms = forms_of(block)
    size = (side,) * 3
    x = noise(channels, size) + np.float32(mean)
    wide = forms_of(copy.deepcopy(block).double())
    _check_equal(wide, channels)
    with torch.inference_mode():
        exact = wide["transposed"](torch.from_numpy(x).double()).numpy()
    errors: dict[str, float] = {}
    target = TARGETS["openvino"]
    with ExitStack() as stack:
        sessions = {}
        for name, form in forms.items():
            alone = model_of(form, channels, size)
            graph = to_onnx(alone, size, half=precision in target.half)
            sessions[name] = stack.enter_context(target.trial(Job(alone, graph, precision, size)))
            errors[name] = _distance(sessions[name].run(x), exact)
        taken: dict[str, list[float]] = {name: [] for name in forms}
        generator = np.random.default_rng(0)
        for _ in range(rounds):
            for name in generator.permutation(list(forms)):
                taken[name].append(milliseconds(sessions[name], x))
    rows = {}
    for name, times in taken.items():
        ratio = median_ratio(np.log(times) - np.log(taken[REFERENCE]))
        rows[name] = {"ms": float(np.median(times)), "over_parity": asdict(ratio), "error": errors[name]}
        interval = f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
        typer.echo(f"{name:12} {np.median(times):7.1f} ms  {interval}  error {errors[name]:.2e}")
    whole = {"channels": channels, "size": size, "precision": precision, "mean": mean, "rounds": rounds}
    out.write_text(json.dumps({**whole, "rows": rows, "environment": environment().model_dump()}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
