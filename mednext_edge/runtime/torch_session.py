"""PyTorch as an engine: the FP32 baseline, and the network while it trains."""

from __future__ import annotations

import copy

import torch
from torch import nn

from mednext_edge.errors import TargetUnavailableError, UsageError
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.runtime.session import Array, Session
from mednext_edge.task import Task


def torch_device(name: str | torch.device) -> torch.device:
    """A device that tensors can be put on here.

    Raises:
        UsageError: torch knows no such device.
        TargetUnavailableError: this machine, or this build of torch, has none.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"found the device `{name}`; PyTorch runs on cpu, cuda, mps or xpu") from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled for the device
        raise TargetUnavailableError(f"no device `{name}` here ({str(error).splitlines()[0]}); use cpu") from error
    return device


class TorchSession(Session):
    """A network run eagerly in float32 on one device.

    Args:
        net: [N, C, *spatial] -> logits, or a list whose first entry they are.
        task: what it is for.
        device: a torch device.
        threads: CPU threads while it runs; None leaves PyTorch's setting.

    Raises:
        UsageError, TargetUnavailableError: see `torch_device`.
    """

    def __init__(
        self, net: nn.Module, task: Task, device: str | torch.device = "cpu", threads: int | None = None
    ) -> None:
        self.task = task
        self.threads = threads
        self.provider = f"torch {torch.__version__}"
        self.precision = "fp32"
        self.patch = None
        self.device = torch_device(device)
        # Contiguous on purpose: PyTorch's channels-last GroupNorm on CPUs cancels digits (1e-2 off on real images).
        self._net: nn.Module | None = net.to(self.device)

    @classmethod
    def of(cls, model: LoadedModel, device: str | torch.device = "cpu", threads: int | None = None) -> TorchSession:
        """A session on a copy of the model, so that the caller's network stays as it is."""
        return cls(copy.deepcopy(model.net).eval(), model.task, device, threads)

    def _run(self, x: Array) -> Array:
        assert self._net is not None, "this session is closed"
        before = torch.get_num_threads()
        try:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            with torch.inference_mode():
                out = self._net(torch.from_numpy(x).to(self.device))
        finally:
            torch.set_num_threads(before)
        logits = out[0] if isinstance(out, list) else out
        return logits.float().cpu().numpy()  # type: ignore[no-any-return]

    def close(self) -> None:
        self._net = None
