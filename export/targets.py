"""The table of targets: what can be written, in which precisions, and by which file.

Every target's file adds its own entry with `TARGETS.add`; help texts, flag checks, the README table
and `doctor` are made from the table. Files are imported for their entry by `mednext_edge.export.export`;
the library behind one is imported only when it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mednext_edge.bundle import Engine, Manifest
from mednext_edge.evaluation.report import Layers
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.nvidia.recipe import HardwareCompatibility
from mednext_edge.quantize.flavour import Flavour
from mednext_edge.registry import Registry, unknown_name
from mednext_edge.runtime.session import Session

if TYPE_CHECKING:
    import onnx

    from mednext_edge.quantize.plan import Plan


def in_int8(precision: str) -> bool:
    """Whether a precision has INT8 in it; `int8-bf16` is INT8 with bfloat16 for the rest."""
    return precision.split("-")[0] == "int8"


Progress = Callable[[str, int, int], None]
"""Told of progress: (what is being done, steps done, steps in all; 0 in all means not known)."""


def silent(what: str, done: int, total: int) -> None:
    """A progress that nobody watches."""


@dataclass(frozen=True)
class BuildOptions:
    """What the builders of NVIDIA's targets are told.

    Attributes:
        archs: compute capabilities to build for, such as `8.6`; empty leaves the choice to the target.
        defer: write what the engine is built from, and leave the building to the device.
        range: smallest and largest patch; None builds for one patch alone.
        workspace_mib: limit of the builder's scratch memory; None is all that the device has.
        optimization_level: 0..5; None is the builder's default.
        hardware_compatibility: on which other GPUs the engine runs.
        version_compatible: the engine runs in newer releases of the same major version.
    """

    archs: tuple[str, ...] = ()
    defer: bool = False
    range: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    workspace_mib: int | None = None
    optimization_level: int | None = None
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False


@dataclass(frozen=True)
class Job:
    """What a target is asked to write.

    Attributes:
        model: in deploy form.
        graph: the network in the precision, with INT8 written into it; empty where the target is `graphless`.
        precision: one of the target's.
        patch: spatial size, multiples of the network's divisor.
        build: for NVIDIA's targets.
        progress: told of calibration and build.
        refused: names of layers that `Target.refuses` named; they are in float.
        given_back: names of layers that are in float because they are faster so -> the reason, for the report.
        plan: what is INT8 in the graph; None where nothing is.
        threads: CPU threads of a trial in OpenVINO; None leaves the choice to the engine.
    """

    model: LoadedModel
    graph: onnx.ModelProto
    precision: str
    patch: tuple[int, ...]
    build: BuildOptions = field(default_factory=BuildOptions)
    progress: Progress = silent
    refused: tuple[str, ...] = ()
    given_back: Mapping[str, str] = field(default_factory=dict)
    plan: Plan | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Target:
    """One kind of engine.

    Attributes:
        summary: one line for people.
        precisions: what it can be asked for; the first is the default.
        package: what must be installed to write and run it.
        device: where it runs.
        rewrites: optional rewrites of the network that pay on this target.
        open_size: the engine file takes any patch, and is compiled for one when it is opened; otherwise it takes the
            patch it was exported for, unless it was exported with an open size.
        write: writes the engine into a folder.
        layers: in which precision the layers of an opened engine run, given the one asked for.
        check: for targets of NVIDIA's builders: refuses `BuildOptions` that they cannot follow, before the work begins;
            None for targets that take none.
        half: precisions whose graph computes in float16; calibration patches, where they are at hand, show whether it
            can hold every activation.
        flavour: how its engines want INT8.
        trial: opens a graph as its engines would run it, or nearly so, without writing a file.
        refuses: names of the layers of a plan that this machine's engine has no INT8 kernel for in the job's precision;
            the job's graph is still in float. None for engines that compute such layers in float by themselves.
        accepts: refuses, with ExportError, networks that its engine has no form of, before the work begins; None for
            targets that take any.
        whole: its engine has no float form of a layer, so that there is nothing to choose.
        graphless: precisions whose engine is written from the network itself; making a graph takes minutes.
        stand_in: opens what ONNX Runtime can run of a bundle whose engine cannot run on this machine.
    """

    summary: str
    precisions: tuple[str, ...]
    package: str
    device: str
    rewrites: tuple[str, ...]
    write: Callable[[Job, Path], Engine]
    layers: Callable[[Session, Path], Layers]
    flavour: Flavour
    trial: Callable[[Job], Session]
    open_size: bool = False
    half: tuple[str, ...] = ()
    check: Callable[[BuildOptions, str], None] | None = None
    stand_in: Callable[[Path, Manifest], Session] | None = None
    refuses: Callable[[Job, Plan], tuple[str, ...]] | None = None
    accepts: Callable[[LoadedModel], object] | None = None
    whole: bool = False
    graphless: tuple[str, ...] = ()

    def check_precision(self, name: str, precision: str) -> None:
        """Raises UnknownNameError when this target does not come in that precision."""
        if precision not in self.precisions:
            raise unknown_name(f"precision of target {name}", precision, self.precisions)


TARGETS: Registry[Target] = Registry("target")
