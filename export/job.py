"""The main job of the product: checkpoint in, validated bundle out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from mednext_edge.bundle import Manifest, read_manifest
from mednext_edge.bundle.writer import refuse_taken
from mednext_edge.checkpoints import load
from mednext_edge.data.dataset import Case, Dataset, holds_images, list_images, open_dataset
from mednext_edge.errors import AccuracyGateError, DataError, TargetUnavailableError, UsageError
from mednext_edge.evaluation.gate import GateResult
from mednext_edge.evaluation.limits import Limits
from mednext_edge.evaluation.report import Report
from mednext_edge.export.control import AccuracyControl
from mednext_edge.export.export import check_build, check_kinds, check_network, check_sizes, export, target_of
from mednext_edge.export.proof import Proof
from mednext_edge.export.targets import BuildOptions, Progress, in_int8
from mednext_edge.export.tune import Effort, Setting, Tuning, granted
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.quantize.calibration import ESTIMATOR, FLOAT_PATCHES, default_count, draw
from mednext_edge.runtime.threads import TUNING
from mednext_edge.task import Frozen, Task

# Demo models whose images come with the package.
DEMO_DATA = ("demo:brain-tissue",)
ACCURACY_CONTROL = ", keep layers in float with --accuracy-control"


@dataclass(frozen=True)
class ExportRequest:
    """What `mednext-export` was asked for; None leaves a choice to the checkpoint or to the shipped demo.

    Attributes:
        calib, validate: data sets; for a demo model whose data is at hand they default to it.
        calib_method: how ranges are taken, a name in `quantize.ranges.ESTIMATORS`.
        precision: None takes the target's first.
        limits: of the gate: what may be lost against FP32.
        int8_layers: kinds of layer to quantise; empty leaves the choice to the target.
        accuracy_control: keep as many layers in float as `limits` ask for.
        sensitivity: folder with the layers' sensitivity, for accuracy control to go on with.
        control_minutes: budget of accuracy control; None has no limit.
        build: what the builders of NVIDIA's targets are told.
        tune: what it may take to choose forms, layers and threads by measurement; None takes the target's defaults.
        dry_run: check everything, write nothing.
    """

    checkpoint: str = "demo:brain-tissue"
    target: str = "openvino"
    precision: str | None = None
    calib: str | None = None
    validate: str | None = None
    limits: Limits = field(default_factory=Limits)
    patch: tuple[int, ...] | None = None
    calib_samples: int | None = None
    calib_method: str = ESTIMATOR
    out: Path | None = None
    force: bool = False
    dynamic: bool = False
    int8_layers: tuple[str, ...] = ()
    accuracy_control: bool = False
    sensitivity: Path | None = None
    control_minutes: float | None = None
    build: BuildOptions = field(default_factory=BuildOptions)
    tune: Effort | None = None
    dry_run: bool = False


class ExportOutcome(Frozen):
    """What came of it: the bundle, its manifest, its report, the gate, and the seconds it took.

    After a dry run `written` is False and manifest and report are None. `tuning` is there when something was chosen.
    """

    path: Path
    written: bool
    seconds: float
    plan: dict[str, str]
    manifest: Manifest | None = None
    report: Report | None = None
    gate: GateResult | None = None
    tuning: Tuning | None = None


class GateFailure(AccuracyGateError):
    """The drop exceeds what was allowed; `outcome` is what was written all the same, marked as failed."""

    def __init__(self, message: str, outcome: ExportOutcome) -> None:
        super().__init__(message)
        self.outcome = outcome


class EngineDeferred(TargetUnavailableError):
    """The bundle is written, but its engine can only be built on the device; `outcome` is what was written."""

    def __init__(self, message: str, outcome: ExportOutcome) -> None:
        super().__init__(message)
        self.outcome = outcome


def run_export(request: ExportRequest, progress: Progress) -> ExportOutcome:
    """Load, fuse, quantise, convert, validate, publish.

    Everything that can be wrong with the request is checked before the first long step.

    Raises:
        GateFailure: the drop exceeds `limits`; the bundle is written, its gate marked `failed`.
        EngineDeferred: the engine cannot be built on this machine, and nobody said so with `build.defer`; the bundle is
            written.
        MednextEdgeError: anything else; then nothing is written.
    """
    start = time.monotonic()
    entry, precision = target_of(request.target, request.precision)
    request = replace(request, precision=precision)
    check_build(request.target, precision, request.build, request.dynamic)
    check_kinds(request.int8_layers, precision)
    request.limits.check()
    progress("load", 0, 1)
    model = load(request.checkpoint)
    progress("load", 1, 1)
    limits = request.limits.of(model.task.model.kind)
    check_network(model, request.target, chosen=bool(request.int8_layers) or request.accuracy_control)
    patch = check_sizes(model, request.patch, request.build)
    setting = Setting(request.target, entry, precision, patch, request.int8_layers)
    request = replace(request, tune=granted(model, setting, request.tune))
    out = request.out or Path(f"{model.task.name}.{request.target}-{precision}")
    refuse_taken(out, request.force)
    # Training in INT8 leaves nothing to calibrate; accuracy control measures layers on the same patches.
    calibrated = in_int8(precision) and (model.quantization is None or request.accuracy_control)
    calibration, cases = _data(request, model, calibrated, inspected=precision in entry.half)
    samples = request.calib_samples or (default_count(patch) if calibrated else FLOAT_PATCHES)
    plan = {
        "checkpoint": f"{request.checkpoint} ({model.task.model.family} {model.task.model.variant})",
        "target": f"{request.target} {precision}",
        "patch": _size(patch) + (" (dynamic)" if request.dynamic else ""),
        "calibration": f"{samples} patches of {_size(patch)} from {calibration.name}" if calibration else "none",
        "validation": f"{len(cases)} cases" if cases else "none",
        "tuning": f"about {request.tune.seconds:g} s" if request.tune else "none",
        "out": str(out),
    }
    control = None
    if request.accuracy_control:
        if not in_int8(precision):
            raise UsageError(f"found --accuracy-control with precision {precision}; it belongs to --int8")
        control = AccuracyControl(
            model,
            cases,
            limits=limits,
            folder=request.sensitivity,
            minutes=request.control_minutes,
            progress=progress,
        )
    elif request.sensitivity or request.control_minutes is not None:
        raise UsageError("found --sensitivity or --control-minutes without --accuracy-control, which they belong to")
    if request.dry_run:
        return ExportOutcome(path=out, written=False, seconds=time.monotonic() - start, plan=plan)

    patches = None
    if calibration is not None:
        patches = draw(
            calibration.training,
            model.task,
            samples,
            patch=patch,
            estimator=request.calib_method,
            progress=lambda done, total: progress("draw calibration patches", done, total),
        )
    notes = patches.notes if patches is not None and calibrated else ()
    proof = Proof(model, cases, limits=limits, progress=progress, control=control, notes=notes)
    progress("convert", 0, 0)
    export(
        model,
        target=request.target,
        out=out,
        precision=precision,
        calibration=patches,
        patch=patch,
        dynamic=request.dynamic,
        force=request.force,
        int8_layers=request.int8_layers,
        choose=None if control is None else control.choose,
        build=request.build,
        check=proof.check,
        tune=request.tune,
        progress=progress,
    )
    manifest = read_manifest(out)
    outcome = ExportOutcome(
        path=out,
        written=True,
        seconds=time.monotonic() - start,
        plan=plan,
        manifest=manifest,
        report=proof.report,
        gate=proof.gate,
        tuning=None if request.tune is None else Tuning.model_validate_json((out / TUNING).read_bytes()),
    )
    if proof.gate is not None and proof.gate.status == "failed":
        raise GateFailure(
            f"{proof.gate.reason}; {out} is kept, marked as failed, with its report. "
            f"Allow the drop with --max-drop, calibrate on more data{ACCURACY_CONTROL if control is None else ''}, "
            "or export at a higher precision",
            outcome,
        )
    if manifest.engine.status == "deferred" and not request.build.defer:
        raise EngineDeferred(
            f"found no GPU with TensorRT here, so {out} holds the graph and the recipe of its engine. Copy it to the "
            f"device and run `mednext-edge build {out.name}` there; --defer-build says that this is meant",
            outcome,
        )
    return outcome


def _size(patch: tuple[int, ...]) -> str:
    return " x ".join(map(str, patch))


def _data(
    request: ExportRequest, model: LoadedModel, calibrated: bool, *, inspected: bool
) -> tuple[Dataset | None, tuple[Case, ...]]:
    """Calibration data and validation cases, opened and checked against the network.

    Args:
        calibrated: there must be calibration data.
        inspected: the target looks at calibration patches where there are any.

    Raises:
        UsageError: no calibration data where there must be some.
        DataError: data that cannot be opened, or with other channels or labels than the network's.
    """
    demo = request.checkpoint if request.checkpoint in DEMO_DATA else None
    calib, labelled = request.calib or demo, request.validate or request.calib or demo
    calibration = None
    if calibrated:
        if calib is None:
            raise UsageError(
                f"INT8 needs images to calibrate on, and {request.checkpoint} brings none; give --calib DATA, "
                "a folder with dataset.json, or with images and labels"
            )
        calibration = open_data(calib, model.task)
        if not calibration.training:
            raise DataError(f"{calib} holds no training case to calibrate on")
    elif inspected and (calib or labelled) is not None:
        found = open_data(str(calib or labelled), model.task)
        calibration = found if found.training else None
    validation = open_data(labelled, model.task) if labelled is not None else None
    if validation is None:
        return calibration, ()
    if request.validate and not validation.validation:
        raise DataError(f"{labelled} holds no validation case")
    return calibration, validation.validation


def open_data(where: str, task: Task) -> Dataset:
    """Open a data set and check it against what a network is for.

    Args:
        where: a folder of a data set, or of images alone; or the name of a demo.
        task: of the network.

    Raises:
        DataError: it cannot be opened, or has other channels or labels.
    """
    folder = Path(where)
    if folder.is_dir() and not (folder / "dataset.json").exists() and holds_images(folder):
        # Images alone are enough to calibrate on.
        names = tuple(f"channel-{i}" for i in range(task.model.in_channels))
        return Dataset(folder.name, list_images(folder), (), task.labels, names)
    dataset = open_dataset(where)
    if dataset.kind != task.model.kind:
        raise DataError(f"{where} is for {dataset.kind}; this network is for {task.model.kind}")
    convertible = task.preprocessing.colour is not None and dataset.colour is not None
    if len(dataset.channels) != task.model.in_channels and not convertible:
        raise DataError(
            f"{where} holds images of {len(dataset.channels)} channels; this network takes {task.model.in_channels}"
        )
    unknown = sorted(set(dataset.labels.values()) - set(task.labels.values()))
    if unknown:
        raise DataError(
            f"{where} holds the label values {unknown}; this network knows {task.labels}. "
            "Give data with the labels it was trained for"
        )
    return dataset
