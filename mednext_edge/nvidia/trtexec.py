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

    With several architectures it is the only difference to `build_plan`: the tool puts them into one plan.

    Args:
        recipe: as it stands in the bundle.
        out: the plan to write.
    """
    cross = PROVIDERS[recipe.provider].cross
    words = [TOOLS[recipe.provider], f"--onnx={recipe.graph}", f"--saveEngine={out}"]
    if not cross:
        words.append("--stronglyTyped")  # TensorRT 10 needs it, 11 takes it for granted, RTX knows nothing else
    if recipe.archs and cross:
        words.append(f"--computeCapabilities={','.join(member(arch).removeprefix('SM') for arch in recipe.archs)}")
    if not recipe.static:
        for name, patch in (("min", recipe.min), ("opt", recipe.opt), ("max", recipe.max)):
            words.append(f"--{name}Shapes={recipe.input}:{'x'.join(map(str, recipe.shape(patch)))}")
    if recipe.workspace_mib is not None:
        words.append(f"--memPoolSize=workspace:{recipe.workspace_mib}")  # MiB is the tool's unit
    if recipe.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={recipe.optimization_level}")
    if recipe.hardware_compatibility != "none" and not cross:
        words.append(f"--hardwareCompatibilityLevel={_LEVELS[recipe.hardware_compatibility]}")
    if recipe.version_compatible and not cross:
        words.append("--versionCompatible")
    words += ["--noTF32", "--profilingVerbosity=detailed", "--skipInference"]
    return shlex.join(words)
