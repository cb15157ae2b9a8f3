"""What a finished bundle can do, measured before it is published: report, picture, gate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mednext_edge.bundle import Gate, Manifest
from mednext_edge.data.dataset import Case
from mednext_edge.environment import environment
from mednext_edge.errors import TargetUnavailableError
from mednext_edge.evaluation.gate import GateResult, check_gate
from mednext_edge.evaluation.latency import measure
from mednext_edge.evaluation.limits import Limits
from mednext_edge.evaluation.markdown import to_markdown
from mednext_edge.evaluation.picture import comparison
from mednext_edge.evaluation.report import Report
from mednext_edge.evaluation.validate import Compared, validate
from mednext_edge.export.baseline import baseline_session
from mednext_edge.export.targets import TARGETS, Progress
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.runtime.engines import OpenOptions, open_engine
from mednext_edge.runtime.session import Session

if TYPE_CHECKING:
    from mednext_edge.export.control import AccuracyControl

REPORT, TEXT, PICTURE = "report.json", "report.md", "comparison.png"
# Timed patches: at least 5, more when they are small.
LATENCY_ROUNDS, LATENCY_VOXELS = 5, 2**22


class Proof:
    """Runs on a bundle before it is published, and leaves its reports in it.

    Args:
        baseline: what the engine is compared with: the model before the export, or an open session.
        cases: to validate on; without any, only time and layers are reported.
        limits: what may be lost.
        progress: told of every step.
        control: what chose the layers in INT8, if anything did; its reports join the others.
        notes: for the report.

    Attributes:
        report, gate: what came of it; None before `check`.
    """

    def __init__(
        self,
        baseline: LoadedModel | Session,
        cases: Sequence[Case],
        *,
        limits: Limits,
        progress: Progress,
        control: AccuracyControl | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.baseline, self.cases, self.progress = baseline, cases, progress
        self.control, self.notes = control, notes
        self.limits = limits
        self.report: Report | None = None
        self.gate: GateResult | None = None
        self._shown: Compared | None = None

    def check(self, folder: Path, manifest: Manifest) -> Gate:
        """Measure a bundle whose engine is written, and add the reports to its folder.

        Raises:
            TargetUnavailableError: neither the engine nor a stand-in for it runs on this machine.
        """
        session, stand_in = open_or_stand_in(folder, manifest)
        with session:
            report = self._measure(session, manifest, timed=stand_in is None)
            layers = TARGETS[manifest.target].layers(session, folder / manifest.engine.file)
        size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
        self.report = report.model_copy(
            update={"layers": layers, "size_mb": size, "stand_in": stand_in, "notes": self.notes}
        )
        if self.control is not None:
            self.report = self.control.describe(self.report)
            self.control.write(folder)
        self.gate = check_gate(self.report, self.limits)
        (folder / REPORT).write_text(self.report.to_json(), encoding="utf-8")
        text = to_markdown(self.report)
        if self._shown is not None:
            self._draw(self._shown, folder / PICTURE, manifest)
            text += f"\n![{self._shown.case}: image, reference, baseline, export, difference]({PICTURE})\n"
        (folder / TEXT).write_text(text, encoding="utf-8")
        return self.gate.for_manifest()

    def _measure(self, session: Session, manifest: Manifest, timed: bool) -> Report:
        latency = None
        if timed:
            patch = manifest.input.patch
            rounds = max(LATENCY_ROUNDS, min(20, int(LATENCY_VOXELS / math.prod(patch))))
            times = measure({"engine": session}, patch, rounds=rounds, warmup=1, progress=self._timing)
            latency = times["engine"]
        if not self.cases:
            return Report(latency=latency, environment=environment())
        with ExitStack() as stack:
            baseline = self.baseline
            if isinstance(baseline, LoadedModel):
                baseline = stack.enter_context(baseline_session(baseline, manifest.input.patch))
            report = validate(session, self.cases, baseline=baseline, progress=self.progress, seen=self._see)
        # What a stand-in takes says nothing of the engine.
        kept = {"latency": latency} if timed else {"end_to_end": None, "peak_memory_mb": None}
        return report.model_copy(update=kept)

    def _timing(self, what: str, done: int, total: int) -> None:
        self.progress("time the engine", done, total)

    def _see(self, compared: Compared) -> None:
        """Keep the case to draw: the one with most differing voxels, for a picture should not flatter."""
        if self._shown is None or _differing(compared) > _differing(self._shown):
            self._shown = compared

    def _draw(self, shown: Compared, path: Path, manifest: Manifest) -> None:
        precision = "fp32" if isinstance(self.baseline, LoadedModel) else self.baseline.precision
        comparison(
            shown.image.array,
            shown.reference,
            shown.baseline,
            shown.exported,
            path,
            shown.image.spacing,
            labels=manifest.labels,
            names=(f"baseline {precision.upper()}", manifest.precision.upper()),
        )


def open_or_stand_in(folder: Path, manifest: Manifest) -> tuple[Session, str | None]:
    """The engine of a bundle; where it cannot run here what stands in for it, and words that say so.

    Raises:
        TargetUnavailableError: the target has nothing that could stand in.
    """
    try:
        return open_engine(folder, manifest, OpenOptions()), None
    except TargetUnavailableError as error:
        stand_in = TARGETS[manifest.target].stand_in
        if stand_in is None:
            raise
        session = stand_in(folder, manifest)
        reason = "is not built yet" if manifest.engine.status == "deferred" else f"did not run here ({error})"
        return session, f"the engine {reason}; its own graph ran in {session.provider} instead"


def _differing(compared: Compared) -> float:
    other = compared.baseline if compared.baseline is not None else compared.reference
    return float((compared.exported != other).mean()) if other is not None else 0.0
