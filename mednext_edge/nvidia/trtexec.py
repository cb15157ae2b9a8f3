"""The same build as a command line of NVIDIA's own tools, for devices without Python."""

from __future__ import annotations

import shlex

from mednext_edge.nvidia.architectures import member
from mednext_edge.nvidia.providers import PROVIDERS
from mednext_edge.nvidia.recipe import BuildRecipe

TOOLS = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}
"""What each provider calls its tool."""

_LEVELS = {"ampere+": "ampere+", "same-cc": "sameComputeCapability"}


def command(recipe: BuildRecipe, out: str = "model.plan") -> str:
    """A line for a POSIX shell, to be run in the bundle's folder.

    It differs from `build_plan` for TensorRT for RTX alone: several architectures go into one plan, and the tool has
    no documented word for the limits of the builder.

    Args:
        recipe: as it stands in the bundle.
        out: the plan to write.
    """
    words = [TOOLS[recipe.provider], f"--onnx={recipe.graph}", f"--saveEngine={out}"]
    words += _for_others(recipe) if PROVIDERS[recipe.provider].cross else _for_this_device(recipe)
    if not recipe.static:
        for name, patch in (("min", recipe.min), ("opt", recipe.opt), ("max", recipe.max)):
            words.append(f"--{name}Shapes={recipe.input}:{'x'.join(map(str, recipe.shape(patch)))}")
    return shlex.join([*words, "--profilingVerbosity=detailed", "--skipInference"])


def _for_others(recipe: BuildRecipe) -> list[str]:
    if not recipe.archs:
        return []
    return [f"--computeCapabilities={','.join(member(arch).removeprefix('SM') for arch in recipe.archs)}"]


def _for_this_device(recipe: BuildRecipe) -> list[str]:
    words = ["--stronglyTyped", "--noTF32"]  # the first is for TensorRT 10; 11 takes it for granted
    if recipe.workspace_mib is not None:
        words.append(f"--memPoolSize=workspace:{recipe.workspace_mib}")  # MiB is the tool's unit
    if recipe.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={recipe.optimization_level}")
    if recipe.hardware_compatibility != "none":
        words.append(f"--hardwareCompatibilityLevel={_LEVELS[recipe.hardware_compatibility]}")
    if recipe.version_compatible:
        words.append("--versionCompatible")
    return words
