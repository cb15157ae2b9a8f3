"""From an ONNX file to a plan, by TensorRT on the device or by TensorRT for RTX on any machine.

The networks are strongly typed: every precision stands in the graph (casts, Q/DQ pairs) and the builder keeps to it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from mednext_edge.errors import ExportError, TargetUnavailableError, UsageError
from mednext_edge.nvidia.architectures import check_archs, member
from mednext_edge.nvidia.logs import LOG, collected, logger
from mednext_edge.nvidia.progress import Progress, watch
from mednext_edge.nvidia.providers import PROVIDERS, Provider, major
from mednext_edge.nvidia.recipe import BuildRecipe

SHOWN_ERRORS = 5
MIB = 1 << 20

COMPATIBILITY = {"ampere+": "AMPERE_PLUS", "same-cc": "SAME_COMPUTE_CAPABILITY"}

ADVICE = (
    ("plugin not found", "it has no operator of this name"),
    ("fp32 3d convolution is not supported", "use --precision fp16: this architecture has no FP32 3-D convolution"),
    (
        "workspace|could not find any implementation",
        "allow more scratch memory with --workspace, or export for a smaller --patch",
    ),
    (
        "out.?of.?memory|insufficient memory|not enough memory|failed_allocation|could not be allocated|bad_alloc|"
        "memory allocation",
        "export for a smaller --patch, limit the scratch memory with --workspace, "
        "or close other programs that use this GPU",
    ),
)
"""What to do when TensorRT's words match one of these; the first that fits counts."""


def build_plan(
    graph: Path,
    recipe: BuildRecipe,
    out: Path,
    *,
    arch: str | None = None,
    timing_cache: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Build one plan and put it at `out`, whole or not at all.

    FP32 layers are computed in FP32: TensorFloat-32, which rounds their inputs to 10 bits, is switched off.

    Args:
        graph: ONNX file; weights beside it are found.
        recipe: how to build; its `graph` and `archs` are the caller's to follow.
        out: replaced if it exists.
        arch: compute capability to build for, such as `8.6`; needed by a provider that builds for other machines,
            not possible with one that builds on the device.
        timing_cache: measured kernel times, used again and added to; a damaged one or one of another device is
            replaced. Not used where nothing is measured, that is, when building for other machines.
        progress: told of each phase: its name, steps done, steps in all. Phases are nested; one ends when all its
            steps are done.

    Raises:
        TargetUnavailableError: the provider is not installed, or finds no device that it needs.
        UsageError: the recipe or `arch` asks for what the provider cannot do.
        ExportError: the graph cannot be parsed or does not fit the recipe, or the builder gives up.
        KeyboardInterrupt: as it would anywhere else, but once the builder has stopped.
    """
    provider = PROVIDERS[recipe.provider]
    module = provider.load()
    with collected(module) as errors:
        builder = _start(module, provider, errors)
        network = builder.create_network(_network_flags(module, provider))
        _parse(module, provider, network, graph)
        _check_input(network, recipe, graph)
        config = builder.create_builder_config()
        _configure(module, provider, config, recipe)
        _set_arch(module, provider, config, arch)
        if not recipe.static:
            _add_profile(builder, config, recipe, errors)
        file = None if provider.cross else timing_cache
        timings = None if file is None else _load_timings(config, file)
        with watch(module, config, progress):
            plan = builder.build_serialized_network(network, config)
            if plan is None:
                words, place = _last(errors), f" for {arch}" if arch else ""
                raise ExportError(
                    f"{provider.title} {module.__version__} cannot build {graph.name}{place}: {words}{_advice(words)}"
                )
        for line in errors:
            LOG.warning("%s", line)  # it did build: kernels that were tried and found wanting
    _write(out, plan)
    if file is not None:
        _save_timings(timings, file)


def _start(module: ModuleType, provider: Provider, errors: list[str]) -> Any:
    """A builder. Without a usable driver or device TensorRT cannot make one, which its bindings call a TypeError."""
    try:
        return module.Builder(logger(module))
    except (TypeError, RuntimeError) as error:
        raise TargetUnavailableError(
            f"{provider.title} {module.__version__} does not start: {_last(errors)} ({error}); "
            "`mednext-edge doctor` tells which devices it finds"
        ) from error


def _network_flags(module: ModuleType, provider: Provider) -> int:
    """TensorRT 10 has to be told that the network is strongly typed; it is the only kind later, and in RTX."""
    if provider.cross or major(module) > 10:
        return 0
    return 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _parse(module: ModuleType, provider: Provider, network: Any, graph: Path) -> None:
    parser = module.OnnxParser(network, logger(module))
    if parser.parse_from_file(str(graph)):  # not from bytes: the weights may lie beside it
        return
    found = [parser.get_error(i) for i in range(parser.num_errors)]
    words = "; ".join(_parser_words(error) for error in found[:SHOWN_ERRORS]) or "it gave no reason"
    rest = len(found) - SHOWN_ERRORS
    raise ExportError(
        f"{provider.title} {module.__version__} cannot parse {graph}: {words}"
        + (f"; and {rest} more" if rest > 0 else "")
        + _advice(words)
    )


def _parser_words(error: Any) -> str:
    """`name (operator): words`; an error of the whole file has neither name nor operator."""
    words, operator = error.desc().strip(), error.node_operator()
    return f"{error.node_name() or 'a node without name'} ({operator}): {words}" if operator else words


def _check_input(network: Any, recipe: BuildRecipe, graph: Path) -> None:
    """The graph's input against the recipe, since a builder's own words name neither."""
    inputs = {tensor.name: tensor for tensor in (network.get_input(i) for i in range(network.num_inputs))}
    if list(inputs) != [recipe.input]:
        raise ExportError(f"{graph} has the inputs {', '.join(inputs)}; the recipe is for `{recipe.input}` alone")
    found = tuple(inputs[recipe.input].shape)
    low, high = recipe.shape(recipe.min), recipe.shape(recipe.max)
    open_size = -1
    fits = len(found) == len(low) and all(
        size == a == b or (size == open_size and not recipe.static) for size, a, b in zip(found, low, high, strict=True)
    )
    if not fits:
        raise ExportError(
            f"{graph} takes {recipe.input} of {list(found)} (-1: any size); the recipe needs "
            + (f"{list(low)}" if recipe.static else f"{list(low)} to {list(high)}")
            + "; export the graph and the recipe together"
        )


def _configure(module: ModuleType, provider: Provider, config: Any, recipe: BuildRecipe) -> None:
    config.clear_flag(module.BuilderFlag.TF32)
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED  # or the inspector knows nothing but names
    if recipe.workspace_mib is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, recipe.workspace_mib * MIB)
    if recipe.optimization_level is not None:
        config.builder_optimization_level = recipe.optimization_level
    if provider.cross and (recipe.hardware_compatibility != "none" or recipe.version_compatible):
        raise UsageError(
            f"{provider.title} has neither hardware-compatible nor version-compatible plans; "
            "name the architectures with --gpu-arch and build again for another version"
        )
    if recipe.version_compatible:
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    if recipe.hardware_compatibility != "none":
        name = COMPATIBILITY[recipe.hardware_compatibility]
        levels = module.HardwareCompatibilityLevel
        if not hasattr(levels, name):
            raise UsageError(
                f"{provider.title} {module.__version__} does not know hardware compatibility "
                f"`{recipe.hardware_compatibility}`; update it, or build without"
            )
        config.hardware_compatibility_level = getattr(levels, name)


def _set_arch(module: ModuleType, provider: Provider, config: Any, arch: str | None) -> None:
    if arch is None:
        if provider.cross:
            raise UsageError(f"{provider.title} builds for any machine; name the architecture, such as 8.6")
        return
    (chosen,) = check_archs((arch,), module, provider)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(module.ComputeCapability, member(chosen)), 0)


def _add_profile(builder: Any, config: Any, recipe: BuildRecipe, errors: list[str]) -> None:
    profile = builder.create_optimization_profile()
    profile.set_shape(recipe.input, *(recipe.shape(patch) for patch in (recipe.min, recipe.opt, recipe.max)))
    if config.add_optimization_profile(profile) < 0:
        raise ExportError(f"the range of patches {recipe.min}, {recipe.opt}, {recipe.max} is refused: {_last(errors)}")


def _load_timings(config: Any, path: Path) -> Any:
    """Attach a timing cache; an empty one where the file is missing, damaged, or of another device or version.

    The builder writes into it, so it has to be kept until the build is over.
    """
    stored = path.read_bytes() if path.is_file() else b""
    timings = config.create_timing_cache(stored)
    if timings is None or not config.set_timing_cache(timings, False):  # False: one of another device does not pass
        LOG.warning("timing cache %s is damaged, or of another device or version: it is started anew", path)
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, False)
    return timings


def _save_timings(timings: Any, path: Path) -> None:
    """Keep the measured times; the plan is good without."""
    try:
        _write(path, timings.serialize())
    except OSError as error:
        LOG.warning("timing cache %s cannot be written (%s): the next build measures again", path, error.strerror)


def _advice(words: str) -> str:
    """What to do about an error, as the end of its message."""
    fitting = (text for signs, text in ADVICE if re.search(signs, words, re.IGNORECASE))
    return f"; {advice}" if (advice := next(fitting, "")) else ""


def _last(errors: list[str]) -> str:
    return "; ".join(line.strip() for line in errors[-SHOWN_ERRORS:]) or "it gave no reason"


def _write(path: Path, content: Any) -> None:
    """Write a buffer under a temporary name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
