"""One case after another, or on another machine: the image read, segmented, and its labels written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from mednext_edge.data.dataset import Case
from mednext_edge.data.dicom_seg import SegIdentity
from mednext_edge.data.outputs import OUTPUTS
from mednext_edge.errors import DataError, UsageError
from mednext_edge.runtime.predictor import Predictor
from mednext_edge.runtime.session import Session
from mednext_edge.task import Frozen


class Settings(Frozen):
    """What is the same for all cases of a run.

    Attributes:
        out: folder of the label maps.
        output: name of their format; None takes what suits each image.
        step, mirror: of the sliding window, as `Predictor` takes them.
        digest: of what segments, SHA-256 in hex; needed for segmentation objects alone.
        version: of this software.
    """

    out: Path
    output: str | None = None
    step: float | None = None
    mirror: bool = True
    digest: str
    version: str


class CaseResult(Frozen):
    """What became of one case: its label map, or its class and the probability of every class, or the error."""

    case: str
    labels: Path | None = None
    answer: str | None = None
    probabilities: dict[str, float] = Field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class CaseRunner:
    """Segments or classifies cases with one session."""

    session: Session
    settings: Settings

    def run(self, case: Case, progress: Callable[[int, int], None] | None = None) -> CaseResult:
        """Predict a case; a bad image is a result, so that it does not cost the others of a long run.

        Raises:
            UsageError: a step out of range.
            ExportError: the engine failed.
        """
        settings, task = self.settings, self.session.task
        predictor = Predictor(self.session, step=settings.step, mirror=settings.mirror, progress=progress)
        start = time.perf_counter()
        try:
            result = (
                self._classify(case, predictor)
                if task.model.kind == "classification"
                else self._segment(case, predictor)
            )
        except DataError as error:
            result = CaseResult(case=case.name, error=str(error))
        return result.model_copy(update={"seconds": round(time.perf_counter() - start, 3)})

    def _segment(self, case: Case, predictor: Predictor) -> CaseResult:
        settings, task = self.settings, self.session.task
        target = label_file(settings, case.name, case.output)
        identity = SegIdentity.of(task, settings.version, settings.digest)
        image = case.image()
        OUTPUTS[settings.output or case.output].write(target, predictor.predict(image), image, identity)
        return CaseResult(case=case.name, labels=target)

    def _classify(self, case: Case, predictor: Predictor) -> CaseResult:
        found = predictor.classify(case.image())
        labels = sorted(self.session.task.labels.items(), key=lambda label: label[1])
        probabilities = {name: float(found[value]) for name, value in labels}
        best = max(probabilities, key=lambda name: probabilities[name])
        return CaseResult(case=case.name, answer=best, probabilities=probabilities)


def label_file(settings: Settings, name: str, usual: str = "nifti") -> Path:
    """Where the labels of a case go.

    Args:
        usual: format that suits the image, taken where the settings name none.
    """
    return settings.out / f"{name}{OUTPUTS[settings.output or usual].suffix}"


def part_of(cases: tuple[Case, ...], parts: int, part: int) -> tuple[Case, ...]:
    """Every `parts`-th case from the `part`-th on, as nnU-Net divides them.

    Raises:
        UsageError: there is no such part.
    """
    if part >= parts:
        raise UsageError(f"found -part_id {part} with -num_parts {parts}; expected 0 to {parts - 1}")
    return cases[part::parts]
