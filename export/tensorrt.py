"""Targets `trt` and `trt-rtx`: plans for NVIDIA GPUs, from one strongly typed ONNX graph.

Precision stands in the graph: Q/DQ pairs around the INT8 convolutions, everything else in float16, the norms'
statistics in float32. So TensorRT 10 and 11, TensorRT for RTX and ONNX Runtime all read the same file, and what
the last of them says of its accuracy on a machine without a GPU is said of that very graph.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mednext_edge.bundle import Engine, Manifest, Plan
from mednext_edge.errors import TargetUnavailableError, UsageError
from mednext_edge.evaluation.report import Fallback, Layers
from mednext_edge.export.onnx import save, trial
from mednext_edge.export.placement import placement
from mednext_edge.export.targets import TARGETS, BuildOptions, Job, Progress, Target
from mednext_edge.nvidia.architectures import PORTABLE, check_archs, normalize
from mednext_edge.nvidia.build import build_plan
from mednext_edge.nvidia.devices import CudaDevice, find_device
from mednext_edge.nvidia.providers import PROVIDERS, Provider
from mednext_edge.nvidia.recipe import RECIPE, BuildRecipe
from mednext_edge.nvidia.trtexec import command
from mednext_edge.quantize.flavour import NVIDIA
from mednext_edge.runtime.session import Session

if TYPE_CHECKING:
    from mednext_edge.nvidia.inspect import EngineLayer

GRAPH, PLAN = "model.onnx", "model.plan"
COMMAND = "build.txt"
"""The recipe as a line for NVIDIA's own command-line tool, for devices without Python."""
NOT_BUILT = "not built"


def write_local(job: Job, folder: Path) -> Engine:
    """Write the graph, its recipe, and the plan for the GPU of this machine where there is one.

    Without a GPU or TensorRT the engine is deferred: `mednext-edge build` finishes it on the device.

    Raises:
        ExportError: the graph cannot be made, does not fit float16, or TensorRT cannot build it.
    """
    recipe = _write_graph(job, folder, PROVIDERS["tensorrt"])
    if job.build.defer or not local_device():
        return Engine(
            file=GRAPH,
            provider=recipe.provider,
            provider_version=NOT_BUILT,
            arch=recipe.archs[0] if recipe.archs else None,
            status="deferred",
        )
    return build(folder, recipe, job.progress)


def write_cross(job: Job, folder: Path) -> Engine:
    """Write the graph, its recipe, and one plan for each architecture; no GPU is needed.

    Raises:
        TargetUnavailableError: TensorRT for RTX is not installed.
        UsageError: an architecture that it cannot build for.
        ExportError: as `write_local`.
    """
    recipe = _write_graph(job, folder, PROVIDERS["tensorrt-rtx"])
    return build(folder, recipe, job.progress)


def build(folder: Path, recipe: BuildRecipe, progress: Progress, timing_cache: Path | None = None) -> Engine:
    """Build what a recipe says from the graph beside it.

    Args:
        folder: of the bundle.
        recipe: with the architectures to build for; none means the GPU of this machine.
        timing_cache: file that keeps what TensorRT has measured; a second build is faster with it.

    Raises:
        TargetUnavailableError: the provider, or for TensorRT the GPU, is not here.
        UsageError: TensorRT is asked for an architecture that is not this machine's.
        ExportError: the graph cannot be built.
    """
    provider = PROVIDERS[recipe.provider]
    version = provider.version
    if provider.cross:
        plans = tuple(Plan(arch=arch, file=plan_file(arch)) for arch in recipe.archs)
    else:
        plans = (Plan(arch=device_for(recipe.archs).capability, file=PLAN),)
    for plan in plans:
        build_plan(
            folder / recipe.graph,
            recipe,
            folder / plan.file,
            arch=plan.arch if provider.cross else None,
            timing_cache=None if provider.cross else timing_cache,
            progress=partial(_tell, progress, plan.arch),
        )
    return Engine(
        file=plans[0].file,
        provider=recipe.provider,
        provider_version=version,
        arch=",".join(plan.arch for plan in plans),
        plans=plans,
    )


def _tell(progress: Progress, arch: str, phase: str, done: int, total: int) -> None:
    """One bar for each plan; the builder's phases change its words."""
    progress(f"build for {arch} · {phase}", done, total)


def plan_file(arch: str) -> str:
    """Name of the plan for one of several architectures: `8.6` -> `model.sm86.plan`."""
    return f"model.sm{arch.replace('.', '')}.plan"


def device_for(archs: tuple[str, ...]) -> CudaDevice:
    """The GPU that TensorRT builds for, the first of this machine.

    Args:
        archs: compute capabilities that are asked for; none takes any.

    Raises:
        TargetUnavailableError: there is no GPU.
        UsageError: it has another compute capability.
    """
    here = find_device(None)
    if archs and here.capability not in archs:
        raise UsageError(
            f"found compute capability {', '.join(archs)} to build for, and {here}, which has {here.capability}; "
            "TensorRT builds for the device at hand alone. Run `mednext-edge build` on the other device, with a bundle "
            f"that was exported with --defer-build, or give --gpu-arch {here.capability}"
        )
    return here


def local_device() -> bool:
    """Whether TensorRT and a GPU are both here."""
    try:
        PROVIDERS["tensorrt"].load()
        find_device(None)
    except TargetUnavailableError:
        return False
    return True


def _write_graph(job: Job, folder: Path, provider: Provider) -> BuildRecipe:
    """Write `model.onnx` and `build.json`."""
    from mednext_edge.export.graph import INPUT

    save(job.graph, folder / GRAPH)
    low, high = job.build.range or (job.patch, job.patch)
    recipe = BuildRecipe(
        provider=provider.name,
        graph=GRAPH,
        archs=_archs(job.build.archs, provider),
        input=INPUT,
        channels=job.model.task.model.in_channels,
        min=low,
        opt=job.patch,
        max=high,
        workspace_mib=job.build.workspace_mib,
        optimization_level=job.build.optimization_level,
        hardware_compatibility=job.build.hardware_compatibility,
        version_compatible=job.build.version_compatible,
    )
    write_recipe(folder, recipe)
    return recipe


def write_recipe(folder: Path, recipe: BuildRecipe) -> None:
    """Put a recipe into a bundle's folder, for `mednext-edge build` and as a line for NVIDIA's tool."""
    (folder / RECIPE).write_text(recipe.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / COMMAND).write_text(command(recipe) + "\n", encoding="utf-8")


def _archs(asked: tuple[str, ...], provider: Provider) -> tuple[str, ...]:
    """Compute capabilities as recipes have them.

    Raises:
        UsageError: one that the provider cannot build for.
        TargetUnavailableError: the provider that must be asked is not installed.
    """
    if provider.cross:
        return check_archs(asked or PORTABLE, provider.load(), provider)
    return tuple(dict.fromkeys(map(normalize, asked)))


def layers(session: Session, file: Path) -> Layers:
    """What the engine runs, as its inspector tells; without a GPU, how the graph places INT8."""
    from mednext_edge.runtime.tensorrt_session import TensorRtSession

    asked = session.precision
    graph = placement(file.parent / GRAPH, asked)
    if not isinstance(session, TensorRtSession):
        return graph
    return engine_report(session.layers(), asked, graph)


def engine_report(found: tuple[EngineLayer, ...], asked: str, graph: Layers) -> Layers:
    """What an engine made of the graph's convolutions.

    Args:
        found: the engine's layers.
        asked: the precision that the export was asked for.
        graph: how the convolutions stand in the graph; those that are not in the asked precision there cannot be in
            the engine.
    """
    refused = [
        Fallback(name=layer.name, asked=asked, got=layer.precision, reason="TensorRT chose a kernel of this precision")
        for layer in found
        if layer.kind == "convolution" and layer.precision != asked and not _stands_in(layer, graph)
    ]
    return Layers(
        counts_by_precision=dict(Counter(layer.precision for layer in found if layer.kind != "reformat")),
        fallbacks=(*graph.fallbacks, *refused),
        reformats=sum(layer.kind == "reformat" for layer in found),
    )


def _stands_in(layer: EngineLayer, graph: Layers) -> bool:
    """Whether one of the nodes that a layer was made from was already in another precision in the graph."""
    return bool({fallback.name for fallback in graph.fallbacks} & set(layer.origin))


def check_local(options: BuildOptions, precision: str) -> None:
    """Raises UsageError or UnknownNameError for options that TensorRT cannot follow, here or on any device."""
    if len(_archs(options.archs, PROVIDERS["tensorrt"])) > 1:
        raise UsageError(
            f"found --gpu-arch {','.join(options.archs)}; TensorRT builds for the GPU of the device alone. "
            "For several use --target trt-rtx"
        )
    if not options.defer and local_device():
        device_for(_archs(options.archs, PROVIDERS["tensorrt"]))


def check_cross(options: BuildOptions, precision: str) -> None:
    """Raises as `check_local`, or TargetUnavailableError without TensorRT for RTX."""
    if options.defer:
        raise UsageError("found --defer-build; --target trt-rtx builds on any machine, leave it out")
    if options.hardware_compatibility != "none" or options.version_compatible:
        raise UsageError(
            "found --hardware-compatibility or --version-compatible; TensorRT for RTX knows neither, its plans are "
            "compiled for the GPU when they are opened. Name every architecture with --gpu-arch"
        )
    _archs(options.archs, PROVIDERS["tensorrt-rtx"])


def stand_in(folder: Path, manifest: Manifest) -> Session:
    """The engine's own graph in ONNX Runtime, on the CPU."""
    from mednext_edge.runtime.onnx_session import OnnxSession

    session = OnnxSession(folder / GRAPH, manifest.task, manifest.precision)
    session.patch = session.patch or manifest.input.patch
    return session


TARGETS.add(
    "trt",
    Target(
        summary="TensorRT plan, built on the device",
        precisions=("fp16", "fp32", "int8"),
        package=PROVIDERS["tensorrt"].package,
        device="NVIDIA GPU, Jetson",
        rewrites=(),
        write=write_local,
        layers=layers,
        check=check_local,
        flavour=NVIDIA,
        trial=trial,
        half=("fp16", "int8"),
        stand_in=stand_in,
    ),
)
TARGETS.add(
    "trt-rtx",
    Target(
        summary="TensorRT for RTX plans, built on any x86-64 machine",
        precisions=("fp16", "fp32", "int8"),
        package=PROVIDERS["tensorrt-rtx"].package,
        device="NVIDIA GPU from Turing to Blackwell, Hopper and data-centre Blackwell apart",
        rewrites=(),
        write=write_cross,
        layers=layers,
        check=check_cross,
        flavour=NVIDIA,
        trial=trial,
        half=("fp16", "int8"),
        stand_in=stand_in,
    ),
)
