"""Which of a bundle's plans runs on a device."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from mednext_edge.bundle import Engine, Manifest
from mednext_edge.errors import IntegrityError, TargetUnavailableError
from mednext_edge.nvidia.devices import CudaDevice
from mednext_edge.nvidia.recipe import RECIPE, BuildRecipe, HardwareCompatibility

AMPERE = (8, 0)


def read_recipe(folder: Path) -> BuildRecipe:
    """How a bundle's plans were built.

    Raises:
        IntegrityError: the bundle has no recipe, or none that can be read.
    """
    file = folder / RECIPE
    try:
        return BuildRecipe.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise IntegrityError(f"{file} is no build recipe ({error}); copy the bundle again or export again") from error


def choose_plan(folder: Path, manifest: Manifest, recipe: BuildRecipe, device: CudaDevice) -> Path:
    """The plan that was built for a device: for its compute capability, or compatible with it.

    Raises:
        TargetUnavailableError: none; names the device, the plans, and the command that builds one.
    """
    plans = _plans(manifest.engine)
    for arch, file in plans:
        if arch == device.capability:
            return folder / file
    for arch, file in plans:
        if _compatible(recipe.hardware_compatibility, arch, device.capability):
            return folder / file
    raise TargetUnavailableError(
        f"{device.name} is sm_{device.capability.replace('.', '')} (compute capability {device.capability}); {folder} "
        f"has plans for {', '.join(arch for arch, _ in plans)}. Run "
        f"`mednext-edge build {folder} --gpu-arch {device.capability}`"
    )


def _plans(engine: Engine) -> tuple[tuple[str, str], ...]:
    """(compute capability, file) of each."""
    if engine.plans:
        return tuple((plan.arch, plan.file) for plan in engine.plans)
    return ((engine.arch or "an unknown device", engine.file),)


def _compatible(level: HardwareCompatibility, built: str, here: str) -> bool:
    """Whether a plan built with that level for another compute capability runs here; the same one always does."""
    return level == "ampere+" and _number(built) >= AMPERE and _number(here) >= AMPERE


def _number(arch: str) -> tuple[int, ...]:
    parts = arch.split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else (0,)
