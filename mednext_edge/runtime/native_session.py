"""Our engine for CPUs, `libmednext_cpu`, as a session."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from mednext_edge.errors import TargetUnavailableError
from mednext_edge.ops import cpu_library
from mednext_edge.ops.packed_net import CpuNet, PackedNet, precision_of
from mednext_edge.runtime.native_file import load_net
from mednext_edge.runtime.session import Array, Session
from mednext_edge.task import Task

DEVICE = "CPU"


class NativeSession(Session):
    """A network on the CPU; it takes any patch that the network takes.

    Args:
        model: a network, or the path of its file.
        task: what it is for.
        patch: spatial size to run at; None takes any.
        device: `CPU`.
        threads: None takes as many as PyTorch has.

    Raises:
        TargetUnavailableError: another device.
        ExportError: the file holds no network.
        MednextEdgeError: the native library is missing.
    """

    def __init__(
        self,
        model: CpuNet | Path,
        task: Task,
        *,
        patch: tuple[int, ...] | None = None,
        device: str = DEVICE,
        threads: int | None = None,
    ) -> None:
        if device.upper() != DEVICE:
            raise TargetUnavailableError(f"found the device `{device}`; the native engine runs on the CPU alone")
        net = load_net(model) if isinstance(model, Path) else model
        self.task = task
        self.patch = patch
        self.threads = threads
        self.precision = precision_of(net)
        self.provider = f"mednext-edge {version('mednext-edge')} ({cpu_library.isa()})"
        self._net: PackedNet | None = PackedNet(net)

    def _run(self, x: Array) -> Array:
        assert self._net is not None, "this session is closed"
        return np.stack([self._net(torch.from_numpy(sample), threads=self.threads).numpy() for sample in x])

    def close(self) -> None:
        if self._net is not None:
            self._net.close()
        self._net = None
