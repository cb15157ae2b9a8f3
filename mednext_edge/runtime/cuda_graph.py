"""PyTorch on an NVIDIA GPU with the whole network as one CUDA graph: one launch in place of some hundred.

The deep levels of a network compute for a few microseconds a kernel, less than it takes to launch it from
Python. A graph is bound to its shapes, so a session has one patch size; its memory stays allocated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mednext_edge.errors import UsageError
from mednext_edge.fusion import fuse
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.registry import unknown_name
from mednext_edge.runtime.session import Array, Session
from mednext_edge.runtime.torch_session import torch_device
from mednext_edge.task import Task

T = TypeVar("T")

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DEVICE = "cuda"
WARM_UP = 3
"""Calls before the capture: libraries choose algorithms and allocate their workspace in the first ones."""


def capture(step: Callable[[], T], device: torch.device) -> tuple[Callable[[], None], T]:
    """Record what a function does on a device.

    Args:
        step: reads and writes memory that outlives it, does not wait for the device, depends on no value there.

    Returns:
        What does it again, and the result, whose memory is written anew each time.
    """
    with torch.cuda.device(device), torch.inference_mode():
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                step()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = step()

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay, output


class CudaGraphSession(Session):
    """A network captured at one patch size, computed channels-last.

    Args:
        net: [N, C, *patch] -> one tensor of logits; is taken over.
        task: what it is for.
        patch: spatial size.
        batch: patches of one launch; more than these are cut, fewer cost as much.
        precision: a name of `DTYPES`.
        device: a CUDA device.

    Raises:
        UsageError: the device is no CUDA device, or torch knows no such one.
        UnknownNameError: no such precision.
        TargetUnavailableError: this machine, or this build of torch, has no such device.
    """

    def __init__(
        self,
        net: nn.Module,
        task: Task,
        patch: tuple[int, ...],
        *,
        batch: int = 1,
        precision: str = "fp16",
        device: str | torch.device = "cuda",
    ) -> None:
        if precision not in DTYPES:
            raise unknown_name("precision", precision, DTYPES)
        if batch < 1:
            raise UsageError(f"found batches of {batch} patches; expected 1 or more")
        self.device = torch_device(device)
        if self.device.type != DEVICE:
            raise UsageError(f"found the device `{self.device}`; a CUDA graph runs on a CUDA device, such as cuda:0")
        self.task, self.patch, self.precision = task, patch, precision
        self.provider = f"torch {torch.__version__}, CUDA graph"
        layout = torch.channels_last_3d if len(patch) == 3 else torch.channels_last
        net = net.to(self.device, DTYPES[precision]).eval()
        net.to(memory_format=layout)  # type: ignore[call-overload]
        shape = (batch, task.model.in_channels, *patch)
        given = torch.zeros(shape, dtype=DTYPES[precision], device=self.device).contiguous(memory_format=layout)
        replay, logits = capture(lambda: net(given), self.device)
        # The graph holds addresses, not tensors: the weights must stay.
        self._captured: tuple[nn.Module, Tensor, Callable[[], None], Tensor] | None = (net, given, replay, logits)

    @classmethod
    def of(
        cls,
        model: LoadedModel,
        patch: tuple[int, ...],
        *,
        batch: int = 1,
        precision: str = "fp16",
        device: str | torch.device = "cuda",
    ) -> CudaGraphSession:
        """A session on the deploy form of a model, with our kernels; the model itself is not touched."""
        net = fuse(model, backend="cuda").net
        return cls(net, model.task, patch, batch=batch, precision=precision, device=device)

    def _run(self, x: Array) -> Array:
        assert self._captured is not None, "this session is closed"
        _, given, replay, logits = self._captured
        out = np.empty((len(x), *logits.shape[1:]), np.float32)
        with torch.inference_mode():
            for start in range(0, len(x), len(given)):
                part = torch.from_numpy(x[start : start + len(given)])
                # What lies behind a short part is of an earlier launch; no sample depends on another.
                given[: len(part)].copy_(part)
                replay()
                out[start : start + len(part)] = logits[: len(part)].float().cpu().numpy()
        return out

    def close(self) -> None:
        """Free the graph, its memory and the network."""
        self._captured = None
