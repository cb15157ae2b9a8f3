"""Whole networks: inference and training steps, with our kernels and without, and their peak memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gpu import timing
from mednext_edge.fusion.cuda_block import use_cuda_block
from mednext_edge.fusion.depthwise import use_depthwise
from mednext_edge.models.cmunext import CMUNeXt, cmunext_config
from mednext_edge.models.config import mednext_config
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.ops.depthwise3d_cuda import CHANNELS_LAST
from mednext_edge.runtime.cuda_graph import capture


@dataclass(frozen=True)
class Contender:
    """One way to run a network in float16.

    Attributes:
        last: its images and weights are channels-last; else contiguous.
        ours: our operators in place of its blocks and depthwise convolutions.
        autocast: parameters stay float32, and autocast chooses the type of every operator; else everything is float16.
        captured: as one CUDA graph.
        compiled: through torch.compile in its mode max-autotune, which captures too.
    """

    last: bool = True
    ours: bool = False
    autocast: bool = True
    captured: bool = False
    compiled: bool = False


EAGER = {"torch contiguous": Contender(last=False), "torch channels-last": Contender()}
INFERENCE = {
    "ours": Contender(ours=True, autocast=False, captured=True),
    **EAGER,
    "torch compiled": Contender(autocast=False, compiled=True),
}
TRAINING = {"ours": Contender(ours=True), **EAGER}


@dataclass(frozen=True)
class Network:
    """A published variant at a patch, for inference or one step of training (forward and backward).

    Attributes:
        kernel: of a MedNeXt; None for a CMUNeXt, in 2-D, whose variants have kernels of their own.
    """

    variant: str
    kernel: int | None
    batch: int
    training: bool = False
    patch: int = 128

    @property
    def dims(self) -> int:
        return 2 if self.kernel is None else 3

    def build(self) -> nn.Module:
        if self.kernel is None:
            return CMUNeXt(cmunext_config(self.variant, in_channels=1))
        return MedNeXt(mednext_config(self.variant, kernel=self.kernel))

    def __str__(self) -> str:
        what = "training step" if self.training else "inference"
        name = f"CMUNeXt-{self.variant}" if self.kernel is None else f"MedNeXt-{self.variant} k{self.kernel}"
        return f"{name}, {self.batch} x {self.patch}^{self.dims}, {what}"


TIMED = [
    Network("S", 3, 1),
    Network("B", 5, 1),
    Network("B", 5, 2, training=True),
    Network("L", None, 1, patch=256),
    Network("L", None, 16, patch=256),
    Network("L", None, 16, training=True, patch=256),
]


def prepared(network: Network, how: Contender, device: torch.device) -> Callable[[], None]:
    """A network and its input on the device; each call is one inference, or one forward and backward pass."""
    torch.manual_seed(0)
    net = network.build().train(network.training)
    dtype = torch.float32 if how.autocast else torch.float16
    layout = CHANNELS_LAST[network.dims + 2] if how.last else torch.contiguous_format
    net.to(device, dtype, memory_format=layout)  # type: ignore[call-overload]
    if how.ours:
        use_depthwise(net)
        use_cuda_block(net)
    shape = (network.batch, 1, *(network.patch,) * network.dims)
    x = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=layout)
    run: nn.Module | Callable[..., torch.Tensor] = torch.compile(net, mode="max-autotune") if how.compiled else net

    def step() -> None:
        with torch.autocast(device.type, torch.float16, enabled=how.autocast), torch.set_grad_enabled(network.training):
            out = run(x)
        if network.training:
            net.zero_grad()
            (out.float().square().mean() * 128).backward()

    return step


def measure(network: Network, device: torch.device) -> dict[str, Any]:
    """One row of the result; a contender that does not fit is left out, and so is the row where that is ours."""
    runs: dict[str, Callable[[], float]] = {}
    peaks: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name, how in (TRAINING if network.training else INFERENCE).items():
        try:
            step = prepared(network, how, device)
            step()
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            step()
            if not how.compiled:  # what it keeps for its own graphs is no peak of a step
                peaks[name] = round((torch.cuda.max_memory_allocated(device) - before) / 1e9, 3)
            call = capture(step, device)[0] if how.captured else step
            call()
            runs[name] = lambda call=call: timing.elapsed(call, device)  # type: ignore[misc]
        except torch.OutOfMemoryError as error:
            left_out[name] = str(error).split(".")[0]
            torch.cuda.empty_cache()
    row: dict[str, Any] = {"network": str(network), "left_out": left_out}
    if "ours" not in runs:
        return row
    ms = timing.in_turns(runs, rounds=5)
    return row | {
        "milliseconds": {name: round(time, 2) for name, time in ms.items()},
        "times_faster": {name: round(time / ms["ours"], 2) for name, time in ms.items() if name != "ours"},
        "peak_gb_above_weights": peaks,
    }
