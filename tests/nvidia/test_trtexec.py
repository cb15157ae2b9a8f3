"""Recipes as lines of NVIDIA's tools."""

from __future__ import annotations

import shlex
from typing import Any

from mednext_edge.nvidia.recipe import BuildRecipe
from mednext_edge.nvidia.trtexec import command


def recipe(**changes: Any) -> BuildRecipe:
    usual = {"provider": "tensorrt", "input": "image", "channels": 2, "min": (8,) * 3, "opt": (8,) * 3, "max": (8,) * 3}
    return BuildRecipe.model_validate(usual | changes)


def test_a_fixed_patch_has_no_shapes() -> None:
    assert command(recipe()) == (
        "trtexec --onnx=model.onnx --saveEngine=model.plan --stronglyTyped --noTF32 "
        "--profilingVerbosity=detailed --skipInference"
    )


def test_everything_that_a_recipe_can_say() -> None:
    line = command(
        recipe(
            min=(4, 8, 8),
            opt=(8, 16, 16),
            max=(16, 32, 32),
            workspace_mib=512,
            optimization_level=5,
            hardware_compatibility="same-cc",
            version_compatible=True,
        ),
        "out.plan",
    )
    assert line.split() == [
        "trtexec",
        "--onnx=model.onnx",
        "--saveEngine=out.plan",
        "--stronglyTyped",
        "--noTF32",
        "--memPoolSize=workspace:512",
        "--builderOptimizationLevel=5",
        "--hardwareCompatibilityLevel=sameComputeCapability",
        "--versionCompatible",
        "--minShapes=image:1x2x4x8x8",
        "--optShapes=image:1x2x8x16x16",
        "--maxShapes=image:1x2x16x32x32",
        "--profilingVerbosity=detailed",
        "--skipInference",
    ]


def test_ampere_is_spelt_as_the_tool_spells_it() -> None:
    assert "--hardwareCompatibilityLevel=ampere+" in command(recipe(hardware_compatibility="ampere+")).split()


def test_rtx_names_architectures_and_leaves_out_what_its_tool_lacks() -> None:
    line = command(recipe(provider="tensorrt-rtx", archs=("8.6", "12.0"), workspace_mib=1, optimization_level=1))
    assert line == (
        "tensorrt_rtx --onnx=model.onnx --saveEngine=model.plan --computeCapabilities=86,120 "
        "--profilingVerbosity=detailed --skipInference"
    )


def test_rtx_without_architectures_leaves_them_to_the_tool() -> None:
    assert "--computeCapabilities" not in command(recipe(provider="tensorrt-rtx"))


def test_names_survive_the_shell() -> None:
    line = command(recipe(graph="my model; rm.onnx"), "a b.plan")
    assert shlex.split(line)[1:3] == ["--onnx=my model; rm.onnx", "--saveEngine=a b.plan"]
