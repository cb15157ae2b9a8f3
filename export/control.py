"""INT8 under a gate: which layers stay in float so that a metric holds on real images."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mednext_edge.data.dataset import Case
from mednext_edge.errors import DataError, UsageError
from mednext_edge.evaluation.bootstrap import Table
from mednext_edge.evaluation.drops import metric_drop
from mednext_edge.evaluation.limits import Limits
from mednext_edge.evaluation.report import Control, Report
from mednext_edge.evaluation.validate import validate
from mednext_edge.export.baseline import baseline_session
from mednext_edge.export.sensitivity import FILE, Subject, measure_layers
from mednext_edge.export.targets import TARGETS, Job, Progress, Target
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.quantize.calibration import CalibrationSet
from mednext_edge.quantize.control import Trial, control
from mednext_edge.quantize.plan import Plan
from mednext_edge.quantize.sensitivity import Sensitivity
from mednext_edge.runtime.session import Session

KEPT = "accuracy control keeps it in float"


class AccuracyControl:
    """Chooses the layers of one export.

    Args:
        model: before the export; what a drop is measured from.
        cases: images with labels, to decide on.
        limits: what may be lost.
        folder: of `mednext-edge quantize --sensitivity`; its figures are gone on with. None measures them anew.
        minutes: budget; when it is spent, the best choice until then is kept. None has no limit.
        progress: told of every step.

    Attributes:
        result: for the report; None before `choose`.

    Raises:
        UsageError: no case has labels.
    """

    def __init__(
        self,
        model: LoadedModel,
        cases: Sequence[Case],
        *,
        limits: Limits,
        folder: Path | None = None,
        minutes: float | None = None,
        progress: Progress,
    ) -> None:
        self.model, self.limits, self.progress = model, limits.of(model.task.model.kind), progress
        self.folder, self.minutes = folder, minutes
        self.cases = [case for case in cases if case.labels is not None or case.category is not None]
        if not self.cases:
            raise UsageError("found --accuracy-control without labelled images to decide on; give --validate DATA")
        self.result: Control | None = None
        self.sensitivities: tuple[Sensitivity, ...] = ()
        self._names: dict[str, str] = {}  # of nodes, by their outputs

    def choose(self, entry: Target, job: Job, plan: Plan, calibration: CalibrationSet) -> Plan:
        """The plan with as few layers in float as the gate asks for.

        Args:
            entry: of the target.
            job: with the graph before INT8 is written into it.
            plan: every layer that may become INT8.
            calibration: patches to measure sensitivity on.

        Raises:
            UsageError: `folder` holds figures of something else, or the minutes do not even do for the layers.
            ExportError: an engine refuses a graph.
            DataError: no class of any case has a score of both models.
        """
        self._names = {name: node.name for node in job.graph.graph.node for name in node.output}
        until = None if self.minutes is None else time.monotonic() + 60 * self.minutes
        measured = self._measured(entry, job, plan, calibration, until)
        order = [found.name for found in sorted(measured, key=lambda found: found.price, reverse=True)]
        with baseline_session(self.model, job.patch) as session:
            baseline = self._scores(session, "validate in FP32")

        def attempt(kept: Sequence[str]) -> Trial:
            chosen = replace(job, graph=plan.keeping(kept).apply(job.graph))
            with entry.trial(chosen) as session:
                scores = self._scores(session, f"validate with {len(kept)} of {len(order)} layers in float")
            found = metric_drop(baseline, scores, [case.name for case in self.cases], self._classes)
            if found.mean is None:
                raise DataError(
                    f"no class of the {len(self.cases)} cases is in their labels or found by either model; "
                    "--accuracy-control needs cases with foreground"
                )
            return Trial(
                float_layers=len(kept),
                drop=found.mean,
                upper=found.ci95 and found.ci95[1],
                worst_case=None if found.worst_case is None else found.worst_case.drop,
                passed=not self.limits.violations(found),
            )

        kept, trials = control(order, attempt, more=lambda: until is None or time.monotonic() < until)
        self.sensitivities = tuple(_decided(found, kept) for found in measured)
        self.result = Control(
            limits=self.limits,
            reached=any(trial.passed for trial in trials),
            float_layers=tuple(kept),
            trials=tuple(trials),
        )
        return plan.keeping(kept)

    def _measured(
        self, entry: Target, job: Job, plan: Plan, calibration: CalibrationSet, until: float | None
    ) -> tuple[Sensitivity, ...]:
        target = next(name for name, known in TARGETS.items() if known is entry)
        subject = Subject(job.model.task.name, target, job.model, plan, calibration, job.precision in entry.half)
        report = measure_layers(subject, self.folder, until=until, progress=self.progress)
        if not report.complete:
            kept = "" if self.folder is None else f", which {self.folder} keeps for the next try"
            raise UsageError(
                f"{self.minutes} minutes did for {len(report.layers)} of {len(plan.ranges)} layers{kept}; give more "
                "--control-minutes, or measure the layers before by `mednext-edge quantize --sensitivity`"
            )
        return report.layers

    def describe(self, report: Report) -> Report:
        """A report with what was decided, and why the layers in float are."""
        if self.result is None:
            return report
        layers = report.layers
        if layers is not None:
            kept = tuple(f"{name}." for name in self.result.float_layers)
            named = (
                # An engine joins the names of what it computes at once; the parts of a parity form have one each; and
                # OpenVINO calls the last layer by the name of the output.
                fallback.model_copy(update={"reason": KEPT})
                if any(f"{self._names.get(part, part)}.".startswith(kept) for part in fallback.name.split(","))
                else fallback
                for fallback in layers.fallbacks
            )
            layers = layers.model_copy(update={"fallbacks": tuple(named)})
        return report.model_copy(update={"layers": layers, "control": self.result})

    def write(self, folder: Path) -> None:
        """Put `sensitivity.json` into a bundle's folder."""
        listed = {"layers": [found.model_dump() for found in self.sensitivities]}
        (folder / FILE).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")

    def _scores(self, session: Session, what: str) -> Table:
        """[cases, classes]"""
        report = validate(session, self.cases, progress=lambda _, done, total: self.progress(what, done, total))
        found = [[case.get(name) for name in self._classes] for case in report.case_scores(str(self.limits.metric))]
        return np.array(found, dtype=np.float64)  # NaN for None

    @property
    def _classes(self) -> list[str]:
        """What each case has scores of: of a classifier whether it is right."""
        if self.model.task.model.kind == "classification":
            return ["accuracy"]
        return list(self.model.task.masks)


def _decided(found: Sensitivity, kept: Sequence[str]) -> Sensitivity:
    if found.name not in kept:
        return found
    reason = f"the gate asks for it: number {kept.index(found.name) + 1} by error for gain"
    return found.model_copy(update={"decision": "float", "reason": reason})
