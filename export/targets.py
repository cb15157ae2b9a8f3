"""The table of targets: what can be written, in which precisions, with which package, for which device.

Help texts, the checks of the flags and `doctor` are made from it. A target registers itself in its own
file; the heavy library behind it is imported only when it writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mednext_edge.bundle import Engine
from mednext_edge.evaluation.report import Layers
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.quantize.calibration import CalibrationSet
from mednext_edge.registry import Registry, unknown_name
from mednext_edge.runtime.session import Session


@dataclass(frozen=True)
class Job:
    """What a target is asked to write.

    Attributes:
        model: in deploy form.
        precision: one of the target's.
        patch: spatial size, multiples of the network's divisor.
        dynamic: leave the spatial size open; `patch` is then the size it was checked at.
        calibration: patches of that size or a smaller one; None unless the precision is `int8`.
        progress: told of the calibration, as (patches taken, patches in all).
    """

    model: LoadedModel
    precision: str
    patch: tuple[int, ...]
    dynamic: bool = False
    calibration: CalibrationSet | None = None
    progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True)
class Target:
    """One kind of engine.

    Attributes:
        summary: one line for people.
        precisions: what it can be asked for.
        package: what must be installed to write and run it.
        device: where it runs.
        rewrites: optional rewrites of the network that pay on this target.
        open_size: the engine file takes any patch, and is compiled for one when it is opened; otherwise it takes the
            patch it was exported for, unless it was exported with an open size.
        write: writes the engine into a folder.
        layers: in which precision the layers of an opened engine run, given the one asked for.
    """

    summary: str
    precisions: tuple[str, ...]
    package: str
    device: str
    rewrites: tuple[str, ...]
    write: Callable[[Job, Path], Engine]
    layers: Callable[[Session, Path], Layers]
    open_size: bool = False

    def check_precision(self, name: str, precision: str) -> None:
        """Raises UnknownNameError when this target does not come in that precision."""
        if precision not in self.precisions:
            raise unknown_name(f"precision of target {name}", precision, self.precisions)


TARGETS: Registry[Target] = Registry("target")
