"""Finishing a bundle on the device: its plans are built from its graph, measured, and sealed with it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mednext_edge.bundle import Manifest, edit_bundle, verify
from mednext_edge.checkpoints import load
from mednext_edge.data.dataset import Case
from mednext_edge.errors import DataError, ExportError, UsageError
from mednext_edge.evaluation.gate import GateResult
from mednext_edge.evaluation.limits import Limits
from mednext_edge.evaluation.report import Report
from mednext_edge.export.export import check_build
from mednext_edge.export.job import DEMO_DATA, open_data
from mednext_edge.export.proof import PICTURE, REPORT, TEXT, Proof, open_or_stand_in
from mednext_edge.export.targets import TARGETS, BuildOptions, Progress
from mednext_edge.export.tensorrt import COMMAND, build, stand_in, write_recipe
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.models.logits import decided
from mednext_edge.nvidia.architectures import check_archs, normalize
from mednext_edge.nvidia.providers import PROVIDERS
from mednext_edge.nvidia.recipe import RECIPE, BuildRecipe
from mednext_edge.runtime.plan_choice import read_recipe
from mednext_edge.task import Frozen

# Labels of noise that an engine and its own graph must agree on; float16 and INT8 kernels differ in the last bits.
AGREEMENT = 0.98


@dataclass(frozen=True)
class BuildRequest:
    """What `mednext-edge build` was asked for.

    Attributes:
        bundle: deferred, or to be built anew.
        archs: compute capabilities in place of the recipe's.
        validate: labelled images; None takes the demo's for a demo model.
        checkpoint: what the bundle was exported from, as the baseline; None takes the demo's for a demo model, and for
            others the bundle's own graph.
        limits: of the gate.
    """

    bundle: Path
    archs: tuple[str, ...] = ()
    validate: str | None = None
    checkpoint: str | None = None
    limits: Limits = field(default_factory=Limits)


class BuildOutcome(Frozen):
    """What came of it; `report` and `gate` are those of the finished engine."""

    path: Path
    seconds: float
    manifest: Manifest
    report: Report
    gate: GateResult


def run_build(request: BuildRequest, progress: Progress) -> BuildOutcome:
    """Build, check against the graph, validate, seal. The bundle is replaced whole or not at all.

    Raises:
        UsageError: the bundle has no recipe; an architecture that cannot be built for.
        IntegrityError: the bundle is damaged.
        DataError: images that cannot be opened, or with other channels or labels than the network's.
        TargetUnavailableError: the builder, or the device that it needs, is not here.
        ExportError: the engine cannot be built, or does not compute what its graph computes.
    """
    start = time.monotonic()
    request.limits.check()
    old = verify(request.bundle)
    limits = request.limits.of(old.model.kind)
    recipe = _recipe(request.bundle, old, request.archs)
    check_build(old.target, old.precision, BuildOptions(archs=recipe.archs), dynamic=False)
    demo = next((name for name in DEMO_DATA if load(name).source.sha256 == old.source.sha256), None)
    baseline = _baseline(request.bundle, old, request.checkpoint or demo)
    cases = _cases(old, request.validate or demo)
    place = request.bundle.resolve()
    cache = place.with_name(f"{place.name}.timing-cache")
    with stand_in(request.bundle, old) as graph:
        proof = Proof(baseline or graph, cases, limits=limits, progress=progress)

        def edit(folder: Path, manifest: Manifest) -> Manifest:
            write_recipe(folder, recipe)
            engine = build(folder, recipe, progress, timing_cache=cache)
            new = manifest.model_copy(update={"engine": engine})
            _compare(folder, new)
            gate = proof.check(folder, new)
            # Without labelled images here, the gate of the graph is all that is known.
            return new if gate.status == "not_run" else new.model_copy(update={"gate": gate})

        plans = [plan.file for plan in old.engine.plans]
        manifest = edit_bundle(request.bundle, edit, replaced=[*plans, RECIPE, COMMAND, REPORT, TEXT, PICTURE])
    assert proof.report is not None and proof.gate is not None
    return BuildOutcome(
        path=request.bundle,
        seconds=time.monotonic() - start,
        manifest=manifest,
        report=proof.report,
        gate=proof.gate,
    )


def _recipe(bundle: Path, manifest: Manifest, archs: tuple[str, ...]) -> BuildRecipe:
    """The recipe of a verified bundle, with other architectures where some are named."""
    if TARGETS[manifest.target].check is None:
        built = ", ".join(name for name, entry in TARGETS.items() if entry.check is not None)
        raise UsageError(f"{bundle} has nothing to build; only bundles of the targets {built} have")
    recipe = read_recipe(bundle)
    if not archs:
        return recipe
    provider = PROVIDERS[recipe.provider]
    checked = check_archs(archs, provider.load(), provider) if provider.cross else tuple(map(normalize, archs))
    return recipe.model_copy(update={"archs": checked})


def _cases(manifest: Manifest, data: str | None) -> tuple[Case, ...]:
    """Labelled images to validate on, checked against the network; none where none are at hand."""
    if data is None:
        return ()
    cases = open_data(data, manifest.task).validation
    if not cases:
        raise DataError(f"{data} holds no validation case")
    return cases


def _baseline(bundle: Path, manifest: Manifest, checkpoint: str | None) -> LoadedModel | None:
    """The checkpoint that a bundle was exported from; None without one."""
    if checkpoint is None:
        return None
    model = load(checkpoint)
    if model.source.sha256 != manifest.source.sha256:
        raise UsageError(
            f"{checkpoint} has SHA-256 {model.source.sha256[:12]}; {bundle} was exported from "
            f"{manifest.source.sha256[:12]}. Give the checkpoint that it was exported from"
        )
    return model


def _compare(folder: Path, manifest: Manifest) -> None:
    """Refuse an engine that does not compute what its graph computes; nothing to compare where it cannot run."""
    session, absent = open_or_stand_in(folder, manifest)
    with session:
        if absent is not None:
            return
        spec = manifest.model
        shape = (1, spec.in_channels, *manifest.input.patch)
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        found = session.run(x)
    with stand_in(folder, manifest) as graph:
        expected = graph.run(x)
    paints = manifest.task.paints
    agreement = float((decided(found, paints) == decided(expected, paints)).mean())
    if not np.isfinite(found).all() or agreement < AGREEMENT:
        raise ExportError(
            f"the engine and its own graph agree on {agreement:.1%} of the voxels of a patch of noise; expected "
            f"{AGREEMENT:.0%} and finite logits. Build with another TensorRT, or export with --precision fp32"
        )
