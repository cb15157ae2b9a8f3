"""A report with every section filled."""

from __future__ import annotations

from mednext_edge.environment import Environment
from mednext_edge.evaluation.report import (
    Accuracy,
    CaseReport,
    Drop,
    EndToEnd,
    Fallback,
    Latency,
    Layers,
    Report,
    Scores,
    WorstCase,
)

ENVIRONMENT = Environment(
    date="2026-01-02T03:04:05+00:00",
    platform="Linux 6.8.0 x86_64",
    cpu="Some CPU @ 2.0 GHz",
    physical_cores=4,
    logical_cores=8,
    usable_cores=2,
    isa=("avx2", "avx512"),
    memory_gb=16.0,
    python="3.11.7",
    packages={"torch": "2.13.0", "openvino": "2026.1"},
)


def scores(precision: str, one: float) -> Scores:
    return Scores(
        precision=precision,
        provider="openvino 2026.1",
        dice_mean=one,
        dice_per_class={"grey|white": one, "rare": None},
        iou_mean=0.8,
        iou_per_class={"grey|white": 0.8, "rare": None},
        nsd_mean=0.99,
        nsd_per_class={"grey|white": 0.99, "rare": None},
    )


def make_report(
    drop: float | None = 0.004,
    *,
    nsd_drop: float | None = 0.001,
    interval: tuple[float, float] | None = (0.001, 0.0075),
    collapsed: bool = False,
    labelled: int = 2,
) -> Report:
    return Report(
        accuracy=Accuracy(
            cases=2,
            labelled=labelled,
            baseline=scores("fp32", 0.9),
            exported=scores("int8", 0.896),
            drop=Drop(
                dice_mean=drop,
                ci95=interval,
                iou_mean=0.002,
                iou_ci95=interval,
                nsd_mean=nsd_drop,
                nsd_ci95=interval,
                worst_case=WorstCase(case="case_2", label="grey|white", drop=0.01),
            ),
            voxel_agreement=0.9987,
            voxel_agreement_foreground=0.975,
            collapsed=collapsed,
        ),
        per_case=(
            CaseReport(
                case="case_1",
                seconds=1.25,
                baseline_seconds=4.5,
                dice={"grey|white": 0.896, "rare": None},
                iou={"grey|white": 0.8, "rare": None},
                nsd={"grey|white": 0.99, "rare": None},
                baseline_dice={"grey|white": 0.9, "rare": None},
                baseline_nsd={"grey|white": 0.99, "rare": None},
                voxel_agreement=0.9987,
                voxel_agreement_foreground=0.975,
            ),
            CaseReport(
                case="case_2",
                seconds=1.5,
                baseline_seconds=None,
                dice=None,
                nsd=None,
                baseline_dice=None,
                baseline_nsd=None,
                voxel_agreement=None,
                voxel_agreement_foreground=None,
            ),
        ),
        latency=Latency(
            patch=(128, 128, 128),
            threads=2,
            p50_ms=210.0,
            p90_ms=230.5,
            p99_ms=250.0,
            first_ms=900.0,
            patches_per_s=4.76,
            rounds_ms=(200.0, 210.0, 250.0),
        ),
        end_to_end=EndToEnd(case_s=1.375),
        peak_memory_mb=1234.5,
        size_mb=11.25,
        layers=Layers(
            counts_by_precision={"int8": 60, "fp32": 3},
            fallbacks=(Fallback(name="head", asked="int8", got="fp32", reason="kept for accuracy"),),
        ),
        environment=ENVIRONMENT,
    )
