"""The main job of the product: checkpoint in, validated bundle out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mednext_edge.bundle import Gate, Manifest, read_manifest
from mednext_edge.bundle.writer import refuse_taken
from mednext_edge.checkpoints import load
from mednext_edge.data.case_files import nifti_files
from mednext_edge.data.dataset import Case, Dataset, list_images, open_dataset
from mednext_edge.environment import environment
from mednext_edge.errors import AccuracyGateError, DataError, UsageError
from mednext_edge.evaluation.gate import GateResult, check_gate
from mednext_edge.evaluation.latency import measure
from mednext_edge.evaluation.markdown import to_markdown
from mednext_edge.evaluation.metrics import METRICS
from mednext_edge.evaluation.picture import comparison
from mednext_edge.evaluation.report import Report
from mednext_edge.evaluation.validate import Compared, validate
from mednext_edge.export.export import check_patch, export, target_of
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.quantize.calibration import calibration_patch, default_count, draw
from mednext_edge.runtime.engines import OpenOptions, open_engine
from mednext_edge.runtime.session import Session
from mednext_edge.runtime.torch_session import TorchSession
from mednext_edge.task import Frozen

Progress = Callable[[str, int, int], None]
"""Told of progress: (what is being done, steps done, steps in all; 0 in all means not known)."""

PICTURE = "comparison.png"
# Demo models whose images come with the package.
DEMO_DATA = ("demo:brain-tissue",)
# Timed patches: at least 5, more when they are small.
LATENCY_ROUNDS, LATENCY_VOXELS = 5, 2**22


@dataclass(frozen=True)
class ExportRequest:
    """What `mednext-export` was asked for; None leaves a choice to the checkpoint or to the shipped demo.

    Attributes:
        calib, validate: data sets; for a demo model whose data is at hand they default to it.
        max_drop: largest drop of `metric` against FP32, as a fraction of 1.
        dry_run: check everything, write nothing.
    """

    checkpoint: str = "demo:brain-tissue"
    target: str = "openvino"
    precision: str = "fp32"
    calib: str | None = None
    validate: str | None = None
    max_drop: float = 0.005
    metric: str = "dice"
    patch: tuple[int, ...] | None = None
    calib_samples: int | None = None
    out: Path | None = None
    force: bool = False
    dynamic: bool = False
    dry_run: bool = False


class ExportOutcome(Frozen):
    """What came of it: the bundle, its manifest, its report, the gate, and the seconds it took.

    After a dry run `written` is False and manifest and report are None.
    """

    path: Path
    written: bool
    seconds: float
    plan: dict[str, str]
    manifest: Manifest | None = None
    report: Report | None = None
    gate: GateResult | None = None


class GateFailure(AccuracyGateError):
    """The drop exceeds what was allowed; `outcome` is what was written all the same, marked as failed."""

    def __init__(self, message: str, outcome: ExportOutcome) -> None:
        super().__init__(message)
        self.outcome = outcome


def run_export(request: ExportRequest, progress: Progress) -> ExportOutcome:
    """Load, fuse, quantise, convert, validate, publish.

    Everything that can be wrong with the request is checked before the first long step.

    Raises:
        GateFailure: the drop exceeds `max_drop`; the bundle is written, its gate marked `failed`.
        MednextEdgeError: anything else; then nothing is written.
    """
    start = time.monotonic()
    target_of(request.target, request.precision)
    _ = METRICS[request.metric]
    progress("load", 0, 1)
    model = load(request.checkpoint)
    progress("load", 1, 1)
    patch = check_patch(model, request.patch)
    out = request.out or Path(f"{model.task.name}.{request.target}-{request.precision}")
    refuse_taken(out, request.force)
    calibration, cases = _data(request, model)
    window = calibration_patch(model, patch)
    samples = request.calib_samples or default_count(window)
    plan = {
        "checkpoint": f"{request.checkpoint} ({model.task.model.family} {model.task.model.variant})",
        "target": f"{request.target} {request.precision}",
        "patch": _size(patch) + (" (dynamic)" if request.dynamic else ""),
        "calibration": f"{samples} patches of {_size(window)} from {calibration.name}" if calibration else "none",
        "validation": f"{len(cases)} cases" if cases else "none",
        "out": str(out),
    }
    if request.dry_run:
        return ExportOutcome(path=out, written=False, seconds=time.monotonic() - start, plan=plan)

    patches = None
    if calibration is not None:
        patches = draw(
            calibration.training,
            model.task,
            samples,
            patch=window,
            progress=lambda done, total: progress("draw calibration patches", done, total),
        )
    validation = _Validation(request, model, cases, progress)
    progress("convert", 0, 0)
    export(
        model,
        target=request.target,
        out=out,
        precision=request.precision,
        calibration=patches,
        patch=patch,
        dynamic=request.dynamic,
        force=request.force,
        check=validation.check,
        progress=lambda done, total: progress("calibrate", done, total),
    )
    outcome = ExportOutcome(
        path=out,
        written=True,
        seconds=time.monotonic() - start,
        plan=plan,
        manifest=read_manifest(out),
        report=validation.report,
        gate=validation.gate,
    )
    if validation.gate is not None and validation.gate.status == "failed":
        raise GateFailure(
            f"{validation.gate.reason}; {out} is kept, marked as failed, with its report. "
            "Allow the drop with --max-drop, calibrate on more data, or export at a higher precision",
            outcome,
        )
    return outcome


class _Validation:
    """Runs on the finished bundle before it is published, and leaves its reports in it."""

    def __init__(self, request: ExportRequest, model: LoadedModel, cases: Sequence[Case], progress: Progress) -> None:
        self.request, self.model, self.cases, self.progress = request, model, cases, progress
        self.report: Report | None = None
        self.gate: GateResult | None = None
        self._shown: Compared | None = None

    def check(self, folder: Path, manifest: Manifest) -> Gate:
        engine = folder / manifest.engine.file
        with open_engine(folder, manifest, OpenOptions()) as session:
            report = self._measure(session, manifest)
            layers = target_of(manifest.target, manifest.precision).layers(session, engine)
        size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
        self.report = report.model_copy(update={"layers": layers, "size_mb": size})
        self.gate = check_gate(self.report, self.request.metric, self.request.max_drop)
        (folder / "report.json").write_text(self.report.to_json(), encoding="utf-8")
        text = to_markdown(self.report)
        if self._shown is not None:
            self._draw(folder / PICTURE, manifest.precision)
            text += f"\n![{self._shown.case}: image, reference, baseline, export, difference]({PICTURE})\n"
        (folder / "report.md").write_text(text, encoding="utf-8")
        return self.gate.for_manifest()

    def _measure(self, session: Session, manifest: Manifest) -> Report:
        patch = manifest.input.patch
        rounds = max(LATENCY_ROUNDS, min(20, int(LATENCY_VOXELS / math.prod(patch))))
        times = measure({"engine": session}, patch, rounds=rounds, warmup=1, progress=self._timing)
        if not self.cases:
            return Report(latency=times["engine"], environment=environment())
        with TorchSession.of(self.model) as baseline:
            report = validate(session, self.cases, baseline=baseline, progress=self.progress, seen=self._see)
        return report.model_copy(update={"latency": times["engine"]})

    def _timing(self, what: str, done: int, total: int) -> None:
        self.progress("time the engine", done, total)

    def _see(self, compared: Compared) -> None:
        """Keep the case to draw: the one with most differing voxels, for a picture should not flatter."""
        if self._shown is None or _differing(compared) > _differing(self._shown):
            self._shown = compared

    def _draw(self, path: Path, precision: str) -> None:
        assert self._shown is not None
        shown = self._shown
        comparison(
            shown.image.array,
            shown.reference,
            shown.baseline,
            shown.exported,
            path,
            shown.image.spacing,
            labels=self.model.task.labels,
            names=("baseline FP32", precision.upper()),
        )


def _size(patch: tuple[int, ...]) -> str:
    return " x ".join(map(str, patch))


def _differing(compared: Compared) -> float:
    other = compared.baseline if compared.baseline is not None else compared.reference
    return float((compared.exported != other).mean()) if other is not None else 0.0


def _data(request: ExportRequest, model: LoadedModel) -> tuple[Dataset | None, tuple[Case, ...]]:
    """Calibration data and validation cases, opened and checked against the network.

    Raises:
        UsageError: INT8 without data.
        DataError: data that cannot be opened, or with other channels or labels than the network's.
    """
    demo = request.checkpoint if request.checkpoint in DEMO_DATA else None
    calib, labelled = request.calib or demo, request.validate or request.calib or demo
    calibration = None
    if request.precision == "int8":
        if calib is None:
            raise UsageError(
                f"INT8 needs images to calibrate on, and {request.checkpoint} brings none; give --calib DATA, "
                "a folder with dataset.json, or with images and labels"
            )
        calibration = _open(calib, model)
        if not calibration.training:
            raise DataError(f"{calib} holds no training case to calibrate on")
    validation = _open(labelled, model) if labelled is not None else None
    if validation is None:
        return calibration, ()
    if request.validate and not validation.validation:
        raise DataError(f"{labelled} holds no validation case")
    return calibration, validation.validation


def _open(where: str, model: LoadedModel) -> Dataset:
    folder = Path(where)
    if folder.is_dir() and not (folder / "dataset.json").exists() and nifti_files(folder):
        # Images alone are enough to calibrate on.
        names = tuple(f"channel-{i}" for i in range(model.task.model.in_channels))
        return Dataset(folder.name, list_images(folder), (), model.task.labels, names)
    dataset = open_dataset(where)
    if len(dataset.channels) != model.task.model.in_channels:
        raise DataError(
            f"{where} holds images of {len(dataset.channels)} channels; this network takes "
            f"{model.task.model.in_channels}"
        )
    unknown = sorted(set(dataset.labels.values()) - set(model.task.labels.values()))
    if unknown:
        raise DataError(
            f"{where} holds the label values {unknown}; this network knows {model.task.labels}. "
            "Give data with the labels it was trained for"
        )
    return dataset
