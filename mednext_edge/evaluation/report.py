"""What was measured of a bundle, as data: the schema of `report.json`.

Every section but the environment may be missing. Scores are fractions of 1; None stands for a
score that does not exist, such as the Dice of a class that is in no case.
"""

from __future__ import annotations

from pydantic import Field

from mednext_edge.environment import Environment
from mednext_edge.evaluation.drops import ClassDrop, MetricDrop, Part, Score, WorstCase
from mednext_edge.evaluation.limits import Limits
from mednext_edge.quantize.control import Trial


class Scores(Part):
    """One model over all cases; a mean is over cases first and then over the foreground classes."""

    precision: str
    provider: str
    dice_mean: Score
    dice_per_class: dict[str, Score]
    iou_mean: Score = None
    iou_per_class: dict[str, Score] = Field(default_factory=dict)
    nsd_mean: Score
    nsd_per_class: dict[str, Score]

    def mean(self, metric: str) -> Score:
        """Of a name in METRICS."""
        found: Score = getattr(self, f"{metric}_mean")
        return found


class Drop(Part):
    """Baseline minus exported; `ci95` is a bootstrap interval over the cases, None with fewer than two."""

    dice_mean: Score
    ci95: tuple[float, float] | None
    dice_per_class: dict[str, ClassDrop] = Field(default_factory=dict)
    worst_case: WorstCase | None
    iou_mean: Score = None
    iou_ci95: tuple[float, float] | None = None
    iou_per_class: dict[str, ClassDrop] = Field(default_factory=dict)
    iou_worst_case: WorstCase | None = None
    nsd_mean: Score
    nsd_ci95: tuple[float, float] | None
    nsd_per_class: dict[str, ClassDrop] = Field(default_factory=dict)
    nsd_worst_case: WorstCase | None = None

    @classmethod
    def of(cls, **drops: MetricDrop) -> Drop:
        """All metrics side by side, by their names in METRICS."""
        parts = {_DROP[name, field]: getattr(drop, field) for name, drop in drops.items() for field in _FIELDS}
        return cls(**parts)

    def in_metric(self, metric: str) -> MetricDrop:
        """One of them, a name in METRICS."""
        return MetricDrop(**{field: getattr(self, _DROP[metric, field]) for field in _FIELDS})


_FIELDS = ("mean", "ci95", "per_class", "worst_case")
_DROP = {(name, field): f"{name}_{field}" for name in ("dice", "iou", "nsd") for field in _FIELDS}
# Of Dice, which came first, the interval and the worst case have no name in front.
_DROP |= {("dice", "ci95"): "ci95", ("dice", "worst_case"): "worst_case"}


class Accuracy(Part):
    """Scores against the reference labels, and agreement with the baseline's labels.

    Attributes:
        cases: how many there are.
        labelled: how many of them have a reference.
        collapsed: the exported model found nothing but background in every case that has foreground.
        voxel_agreement: part of voxels with the baseline's label, mean over cases.
        voxel_agreement_foreground: the same over the voxels that either model calls foreground.
    """

    cases: int
    labelled: int
    baseline: Scores | None
    exported: Scores | None
    drop: Drop | None
    voxel_agreement: Score
    voxel_agreement_foreground: Score
    collapsed: bool


class CaseReport(Part):
    """One case; scores by label are None without a reference, the baseline's without a baseline."""

    case: str
    seconds: float
    baseline_seconds: float | None
    dice: dict[str, Score] | None
    iou: dict[str, Score] | None = None
    nsd: dict[str, Score] | None
    baseline_dice: dict[str, Score] | None
    baseline_iou: dict[str, Score] | None = None
    baseline_nsd: dict[str, Score] | None
    voxel_agreement: Score
    voxel_agreement_foreground: Score


class ClassScores(Part):
    """One classifier over all cases; `metrics` by their names in CLASS_METRICS.

    `confusion` counts cases by reference (rows) and answer (columns), in the order of the labels.
    """

    precision: str
    provider: str
    metrics: dict[str, Score]
    auc_per_class: dict[str, Score]
    sensitivity_per_class: dict[str, Score]
    f1_per_class: dict[str, Score]
    confusion: tuple[tuple[int, ...], ...]


class Classification(Part):
    """Scores against the reference classes, and agreement with the baseline's.

    Attributes:
        cases: how many there are.
        labelled: how many of them have a reference.
        labels: names of the classes, in the order of their values.
        drop: by metric; empty without a baseline or references.
        agreement: part of the cases with the baseline's class.
        collapsed: the exported model finds one class in every case, although they are of several.
    """

    cases: int
    labelled: int
    labels: tuple[str, ...]
    baseline: ClassScores | None
    exported: ClassScores | None
    drop: dict[str, MetricDrop]
    agreement: Score
    collapsed: bool


class ClassifiedCase(Part):
    """One case: its class, and what the models say."""

    case: str
    seconds: float
    reference: str | None
    found: str
    baseline: str | None
    probabilities: dict[str, float]


class Latency(Part):
    """Time of one patch through the engine, without the sliding window; `rounds_ms` are the single timings."""

    patch: tuple[int, ...]
    threads: int | None
    p50_ms: float
    p90_ms: float
    p99_ms: float
    first_ms: float
    patches_per_s: float
    rounds_ms: tuple[float, ...]


class EndToEnd(Part):
    """Seconds from an image in memory to its labels: median over cases."""

    case_s: float


class Fallback(Part):
    """A layer that does not run in the precision that was asked for."""

    name: str
    asked: str
    got: str
    reason: str


class Layers(Part):
    """In which precision the engine's layers run; `reformats` are those that only change a layout, where known."""

    counts_by_precision: dict[str, int]
    fallbacks: tuple[Fallback, ...] = ()
    reformats: int | None = None


class Control(Part):
    """What accuracy control decided.

    Attributes:
        limits: of the gate.
        reached: whether a trial passed; if not, the best one was kept.
        float_layers: names of the layers that stay in float.
        trials: every choice that was measured.
    """

    limits: Limits
    reached: bool
    float_layers: tuple[str, ...]
    trials: tuple[Trial, ...]


class Report(Part):
    """Everything measured; `peak_memory_mb` and `size_mb` are in 1e6 bytes.

    `stand_in` says what ran in place of an engine that cannot run on the machine of the export; None when the engine
    itself ran. `notes` are what a reader of the figures should know besides, a sentence each.
    """

    stand_in: str | None = None
    notes: tuple[str, ...] = ()
    accuracy: Accuracy | None = None
    per_case: tuple[CaseReport, ...] = ()
    classification: Classification | None = None
    classified: tuple[ClassifiedCase, ...] = ()
    latency: Latency | None = None
    end_to_end: EndToEnd | None = None
    peak_memory_mb: float | None = None
    size_mb: float | None = None
    layers: Layers | None = None
    control: Control | None = None
    environment: Environment

    def case_scores(self, metric: str) -> list[dict[str, Score]]:
        """Every case's scores by label; of a classification 1 or 0 for each case, whatever the metric."""
        if self.classification is None:
            return [getattr(case, metric) or {} for case in self.per_case]
        judged = [case for case in self.classified if case.reference is not None]
        return [{"accuracy": float(case.found == case.reference)} for case in judged]

    def to_json(self) -> str:
        """Strict JSON, indented."""
        return self.model_dump_json(indent=2) + "\n"
