"""One feed-forward in INT8 (expand, GELU, compress, residual sum): our native prototype beside OpenVINO's kernels.

    python benchmarks/feed_forward_int8.py [--rounds 9] [--json] [--out FILE]

The widths and sizes are those of the levels of MedNeXt-S and -L at 128^3. OpenVINO has the block between two other
convolutions, as `mednext-export --precision int8-bf16` writes it (int8 on processors without bfloat16); its own profile
says what its two products and its sum take. With the sum it rounds the input of the next layer, which ours does not, so
the products alone are listed too. Both run in turns, with the same threads.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import openvino as ov
import torch
import typer
from peers.engines import BF16, noise
from peers.work import gemm_peak
from torch import Tensor, nn

import mednext_edge as mx
from mednext_edge.cpu import features
from mednext_edge.environment import environment
from mednext_edge.evaluation.ratios import median_ratio
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.models.module import ModuleSpec
from mednext_edge.ops.cpu_library import isa
from mednext_edge.ops.feed_forward_int8 import WEIGHT_LEVELS, FeedForward8, PackedFeedForward, gelu_table

# (side of the volume, channels, expansion)
LEVELS = ((128, 32, 2), (64, 64, 2), (32, 128, 2), (16, 256, 2), (8, 512, 2), (128, 32, 3), (64, 64, 4), (32, 128, 8))


@dataclass(frozen=True)
class Row:
    """One size; rates in GOP/s, two operations a multiply-add.

    Attributes:
        products_ms: of OpenVINO's two convolutions without the sum.
        speedup: over all that OpenVINO does for the block, with its 95 % interval.
    """

    side: int
    channels: int
    hidden: int
    ours_ms: float
    ours_gops: float
    openvino_ms: float
    products_ms: float
    openvino_gops: float
    speedup: tuple[float, float, float]


class FeedForward(nn.Module):
    """What the deploy form of a block has behind its norm, with a layer in front and one behind."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        self.stem, self.head = (nn.Conv3d(channels, channels, 1) for _ in range(2))
        self.expand = nn.Conv3d(channels, channels * expansion, 1)
        self.gelu = nn.GELU()
        self.compress = nn.Conv3d(channels * expansion, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.compress(self.gelu(self.expand(x)))
        found: Tensor = self.head(x)
        return found


class OpenVino:
    """The block as OpenVINO runs it, with its profile."""

    def __init__(self, side: int, channels: int, expansion: int) -> None:
        spec = ModuleSpec(name="ffn", in_channels=channels, classes=channels, patch=(side,) * 3, any_size=True)
        model = LoadedModel.from_module(FeedForward(channels, expansion), spec)
        precision, hint = ("int8-bf16", "bf16") if BF16 & set(features()) else ("int8", "f32")
        with tempfile.TemporaryDirectory() as folder:
            made = mx.export(
                model,
                target="openvino",
                precision=precision,
                calibration=noise(model, (min(side, 16),) * 3),
                out=Path(folder) / "bundle",
            )
            graph = ov.Core().read_model(made / "model.xml")
        graph.reshape([1, channels, *spec.patch])
        options = {
            "PERF_COUNT": True,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self._request = ov.Core().compile_model(graph, "CPU", options).create_infer_request()
        self._x = np.random.default_rng(0).standard_normal((1, channels, *spec.patch), dtype=np.float32)

    def ms(self) -> tuple[float, float]:
        """Of the whole block, and of its products alone."""
        self._request.infer([self._x])
        profile = self._request.profiling_info
        first, products, last = (self._place(profile, name) for name in ("expand", "compress", "head"))
        taken = [i.real_time.total_seconds() * 1e3 for i in profile]
        return sum(taken[first:last]), taken[first] + taken[products]

    @staticmethod
    def _place(profile: list[ov.ProfilingInfo], layer: str) -> int:
        return next(n for n, i in enumerate(profile) if i.node_type == "Convolution" and i.node_name.startswith(layer))


class Ours:
    """Ours on numbers drawn at random: its time does not depend on them."""

    def __init__(self, side: int, channels: int, expansion: int) -> None:
        hidden, voxels = channels * expansion, side**3

        def ints(levels: int, *shape: int) -> Tensor:
            return torch.randint(-levels, levels + 1, shape, dtype=torch.int8)

        weights = FeedForward8(
            ints(WEIGHT_LEVELS, hidden, channels),
            torch.full((hidden,), 1e-3),
            torch.zeros(hidden),
            gelu_table(3 / 127, 3.0),
            ints(WEIGHT_LEVELS, channels, hidden),
            torch.full((channels,), 1e-4),
            torch.zeros(channels),
        )
        self._block = PackedFeedForward(weights)
        self._x, self._residual = ints(127, voxels, channels), torch.randn(voxels, channels).bfloat16()

    def ms(self) -> float:
        start = time.perf_counter()
        self._block(self._x, self._residual, out=self._residual)  # as a stream is kept, and as OpenVINO adds
        return (time.perf_counter() - start) * 1e3


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 9,
    as_json: Annotated[bool, typer.Option("--json")] = False,
    out: Annotated[Path | None, typer.Option(help="File for the result.")] = None,
) -> None:
    rows = []
    for side, channels, expansion in LEVELS:
        theirs, ours = OpenVino(side, channels, expansion), Ours(side, channels, expansion)
        times = np.array([(*theirs.ms(), ours.ms()) for _ in range(rounds + 2)])[2:]
        found = median_ratio(np.log(times[:, 0]) - np.log(times[:, 2]))
        their_ms, products_ms, our_ms = (float(t) for t in np.median(times, axis=0))
        work = 4 * side**3 * channels**2 * expansion / 1e6
        row = Row(
            side=side,
            channels=channels,
            hidden=channels * expansion,
            ours_ms=our_ms,
            ours_gops=work / our_ms,
            openvino_ms=their_ms,
            products_ms=products_ms,
            openvino_gops=work / their_ms,
            speedup=(found.value, found.low, found.high),
        )
        rows.append(row)
        their, our = (
            f"{their_ms:7.2f} ms, {row.openvino_gops:4.0f} GOP/s",
            f"{our_ms:7.2f} ms, {row.ours_gops:4.0f} GOP/s",
        )
        gain = f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"
        typer.echo(f"{side:4}^3 {channels:4} -> {row.hidden:5}  OpenVINO {their}  ours {our}  {gain}", err=True)
    result = {
        "rows": [asdict(row) for row in rows],
        "isa": isa(),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "gemm_peak_gops": gemm_peak("int8"),
        "environment": environment().model_dump(),
    }
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
