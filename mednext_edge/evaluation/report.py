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
    nsd_mean: Score
    nsd_per_class: dict[str, Score]


class Drop(Part):
    """Baseline minus exported; `ci95` is a bootstrap interval over the cases, None with fewer than two."""

    dice_mean: Score
    ci95: tuple[float, float] | None
    dice_per_class: dict[str, ClassDrop] = Field(default_factory=dict)
    worst_case: WorstCase | None
    nsd_mean: Score
    nsd_ci95: tuple[float, float] | None
    nsd_per_class: dict[str, ClassDrop] = Field(default_factory=dict)
    nsd_worst_case: WorstCase | None = None

    @classmethod
    def of(cls, dice: MetricDrop, nsd: MetricDrop) -> Drop:
        """Both metrics side by side."""
        return cls(
            dice_mean=dice.mean,
            ci95=dice.ci95,
            dice_per_class=dice.per_class,
            worst_case=dice.worst_case,
            nsd_mean=nsd.mean,
            nsd_ci95=nsd.ci95,
            nsd_per_class=nsd.per_class,
            nsd_worst_case=nsd.worst_case,
        )

    def in_metric(self, metric: str) -> MetricDrop:
        """One of them, a name in METRICS."""
        parts = {
            "dice": (self.dice_mean, self.ci95, self.dice_per_class, self.worst_case),
            "nsd": (self.nsd_mean, self.nsd_ci95, self.nsd_per_class, self.nsd_worst_case),
        }
        mean, ci95, per_class, worst_case = parts[metric]
        return MetricDrop(mean=mean, ci95=ci95, per_class=per_class, worst_case=worst_case)


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
    """One case; `dice` and `nsd` by label are None without a reference, the baseline's without a baseline."""

    case: str
    seconds: float
    baseline_seconds: float | None
    dice: dict[str, Score] | None
    nsd: dict[str, Score] | None
    baseline_dice: dict[str, Score] | None
    baseline_nsd: dict[str, Score] | None
    voxel_agreement: Score
    voxel_agreement_foreground: Score


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
    latency: Latency | None = None
    end_to_end: EndToEnd | None = None
    peak_memory_mb: float | None = None
    size_mb: float | None = None
    layers: Layers | None = None
    control: Control | None = None
    environment: Environment

    def to_json(self) -> str:
        """Strict JSON, indented."""
        return self.model_dump_json(indent=2) + "\n"
