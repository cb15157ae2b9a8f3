"""The one call that every engine answers: patches in, logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mednext_edge.errors import DataError
from mednext_edge.task import Task

Array = NDArray[np.float32]


class Session(ABC):
    """A network ready to run on one device.

    Attributes:
        task: what the network is for.
        provider: name and version of the engine, such as `openvino 2026.4.1`.
        precision: the precision that was asked for, such as `int8`.
        patch: spatial size the engine was compiled for; None takes any multiple of the network's divisor.
        threads: CPU threads it was given; None left the choice to the engine.
        used_threads: CPU threads it has; None where the engine does not tell.
        refused: why layers outside INT8 do not compute in the precision that was asked for; empty where they may.
    """

    task: Task
    provider: str
    precision: str
    patch: tuple[int, ...] | None
    threads: int | None = None
    used_threads: int | None = None
    refused: str = ""

    def run(self, x: Array) -> Array:
        """[N, C, *patch] float32 -> logits [N, classes, *patch] float32, of a classification [N, classes].

        Raises:
            DataError: the shape is not one that this session takes.
        """
        self._check_shape(x.shape)
        return self._run(np.ascontiguousarray(x, dtype=np.float32))

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        dims = self.task.model.spatial_dims
        if len(shape) != dims + 2 or shape[1] != self.task.model.in_channels:
            raise DataError(
                f"found an input of shape {shape}; expected [N, {self.task.model.in_channels}, {dims} spatial axes]"
            )
        if self.patch is not None and shape[2:] != self.patch:
            raise DataError(f"found a patch of {shape[2:]}; this engine was compiled for {self.patch}")

    @abstractmethod
    def _run(self, x: Array) -> Array: ...

    @abstractmethod
    def close(self) -> None:
        """Free the engine; the session is of no use afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
