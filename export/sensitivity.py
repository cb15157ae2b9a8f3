"""What every layer of a checkpoint costs and gains alone in INT8, as a job that can be stopped and gone on with."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mednext_edge.checkpoints import load
from mednext_edge.data.dataset import open_dataset
from mednext_edge.errors import DataError, UsageError
from mednext_edge.export.export import check_kinds, check_network, check_patch, deploy_form, target_of
from mednext_edge.export.targets import Progress
from mednext_edge.models.families import FAMILIES
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.quantize.calibration import ESTIMATOR, CalibrationSet, default_count, draw
from mednext_edge.quantize.plan import Plan
from mednext_edge.quantize.sensitivity import BALANCE, PARITY_PASSES, Sensitivity, crop, measure
from mednext_edge.task import Frozen

FILE, PLOT = "sensitivity.json", "sensitivity.png"
# Sensitivity gives an order, for which parts of patches do: two of them, and no more than 64 voxels a side.
PATCHES, SIDE = 2, 64


class SensitivityReport(Frozen):
    """`sensitivity.json`: the layers measured so far.

    Attributes:
        key: digest of everything that the figures depend on; a job goes on with its own file alone.
        checkpoint, target: what was measured.
        patch: spatial size that it was measured at.
        complete: whether every layer is there.
        layers: in the order of the network.
    """

    key: str
    checkpoint: str
    target: str
    patch: tuple[int, ...]
    complete: bool
    layers: tuple[Sensitivity, ...]


def run_sensitivity(
    checkpoint: str,
    *,
    target: str,
    calib: str,
    out: Path,
    int8_layers: tuple[str, ...] = (),
    patch: tuple[int, ...] | None = None,
    calib_samples: int | None = None,
    calib_method: str = ESTIMATOR,
    minutes: float | None = None,
    progress: Progress,
) -> SensitivityReport:
    """Measure every layer, and write `sensitivity.json` after each of them and `sensitivity.png` at the end.

    Args:
        checkpoint: as `load` takes it.
        target: whose INT8.
        calib: images to calibrate on.
        out: folder; figures of the same job that lie there are gone on with.
        int8_layers: kinds of layer, in place of the target's.
        patch: to calibrate on; None takes the checkpoint's.
        calib_samples: calibration patches; None chooses.
        calib_method: how ranges are taken, a name in `quantize.ranges.ESTIMATORS`.
        minutes: after which no further layer is begun; None goes on to the end.

    Raises:
        UsageError: `out` holds the figures of another job.
        DataError: unusable images, or a file there that is no such report.
    """
    from mednext_edge.export.graph import to_onnx
    from mednext_edge.quantize.equalise import equalise
    from mednext_edge.quantize.ptq import calibrate

    start = time.monotonic()
    entry, _ = target_of(target, "int8")
    check_kinds(int8_layers, "int8")
    progress("load", 0, 1)
    model = load(checkpoint)
    progress("load", 1, 1)
    check_network(model, target, chosen=True)
    size = check_patch(model, patch)
    patches = draw(
        open_dataset(calib).training,
        model.task,
        calib_samples or default_count(size),
        patch=size,
        estimator=calib_method,
        progress=partial(progress, "draw calibration patches"),
    )
    deploy = deploy_form(equalise(model, patches), entry, int8_layers)
    half = "int8" in entry.half
    progress("convert", 0, 0)
    graph = to_onnx(deploy, size, half=half)
    plan = calibrate(
        graph, deploy.net, patches, entry.flavour, kinds=int8_layers, progress=partial(progress, "calibrate")
    )
    until = None if minutes is None else start + 60 * minutes
    subject = Subject(checkpoint, target, deploy, plan, patches, half)
    done = measure_layers(subject, out, until=until, progress=progress)
    if done.layers:
        from mednext_edge.export.sensitivity_plot import plot

        plot(done.layers, out / PLOT)
    return done


@dataclass(frozen=True)
class Subject:
    """What sensitivity is measured of.

    Attributes:
        checkpoint, target: by name, for people.
        deploy: the network in deploy form.
        plan: its layers.
        calibration: patches; the middle of the first ones is what the layers are measured on.
        half: whether what is not INT8 computes in float16.
    """

    checkpoint: str
    target: str
    deploy: LoadedModel
    plan: Plan
    calibration: CalibrationSet
    half: bool

    @property
    def key(self) -> str:
        """Digest of everything that the figures depend on."""
        thresholds = {name: seen.threshold for name, seen in sorted(self.plan.ranges.items())}
        flavour = (self.plan.flavour.weight_levels, self.plan.flavour.even_depthwise, self.half)
        network = (self.deploy.source.sha256, self.deploy.rewrites, self.target)
        parts = (network, thresholds, flavour, self.calibration.sha256, PATCHES, SIDE, BALANCE, PARITY_PASSES)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def patch(self) -> tuple[int, ...]:
        """The part of a window that the layers are measured on."""
        return small_patch(self.deploy, self.calibration.patches[0].shape[2:])


def measure_layers(
    subject: Subject, folder: Path | None = None, *, until: float | None = None, progress: Progress
) -> SensitivityReport:
    """Measure the layers that are not known yet.

    Args:
        subject: what to measure.
        folder: figures that lie there are gone on with, and each new one is written at once; None keeps none.
        until: of `time.monotonic`, after which no further layer is begun.
        progress: told of every layer.

    Raises:
        UsageError: `folder` holds the figures of another job.
        DataError: a file there that is no such report.
    """
    from mednext_edge.export.graph import to_onnx

    plan, key = subject.plan, subject.key
    known = {found.name: found for found in (_read(folder / FILE, key) if folder is not None else ())}

    def report() -> SensitivityReport:
        layers = tuple(known[name] for name in plan.ranges if name in known)
        return SensitivityReport(
            key=key,
            checkpoint=subject.checkpoint,
            target=subject.target,
            patch=subject.patch,
            complete=len(layers) == len(plan.ranges),
            layers=layers,
        )

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    graph = to_onnx(subject.deploy, subject.patch, half=subject.half)
    patches = [crop(patch, subject.patch) for patch in subject.calibration.patches[:PATCHES]]
    for found in measure(graph, plan, patches, tuple(known), regions=bool(subject.deploy.task.regions)):
        known[found.name] = found
        progress("measure sensitivity", len(known), len(plan.ranges))
        if folder is not None:
            _write(folder / FILE, report())
        if until is not None and time.monotonic() > until:
            break
    return report()


def small_patch(model: LoadedModel, window: tuple[int, ...]) -> tuple[int, ...]:
    """The part of a window that sensitivity is measured on."""
    spec = model.task.model
    if not FAMILIES[spec.family].any_size(spec):
        return window
    divisor = FAMILIES[spec.family].divisor(spec)
    most = max(2 * divisor, SIDE // divisor * divisor)
    return tuple(min(n, most) for n in window)


def _read(file: Path, key: str) -> tuple[Sensitivity, ...]:
    """The layers that a job before this one measured."""
    if not file.exists():
        return ()
    try:
        found = SensitivityReport.model_validate_json(file.read_bytes())
    except ValueError as error:
        raise DataError(
            f"{file} is no report of sensitivity ({error}); move it away, or choose another --out"
        ) from error
    if found.key != key:
        raise UsageError(
            f"{file} holds figures of another checkpoint, target, calibration or kind of layer ({found.checkpoint} for "
            f"{found.target}); choose another --out, or move it away"
        )
    return found.layers


def _write(file: Path, report: SensitivityReport) -> None:
    temporary = file.with_name(f".{file.name}.part")
    temporary.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    temporary.replace(file)
