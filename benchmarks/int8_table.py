"""What INT8 costs a checkpoint and what it gains: FP32, calibrated, under accuracy control, trained in INT8.

    python benchmarks/int8_table.py demo:hippocampus DATA --qat runs/int8 -o tables/hippocampus [--target onnx]

Every row is a bundle, exported by the job behind `mednext-export` and validated on DATA's validation cases: Dice, IoU
and surface Dice, or accuracy and AUC of a classification; drop against FP32 with its interval over the cases, worst
case, size. Then the engines are timed on one patch, interleaved, and the row that was trained in INT8 is compared with
the network that it was trained as. Bundles that lie in the folder are not exported again. Where the processor computes
in bfloat16 there are rows for that, and for INT8 with bfloat16 for the rest; where the native engine takes the
network, for that, calibrated and trained in INT8.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import mednext_edge as mx
from mednext_edge.bundle import read_manifest
from mednext_edge.checkpoints import load
from mednext_edge.cli.console import track
from mednext_edge.cpu import features
from mednext_edge.data.dataset import Case, open_dataset
from mednext_edge.environment import environment
from mednext_edge.errors import ExportError
from mednext_edge.evaluation.drops import MetricDrop, metric_drop
from mednext_edge.evaluation.latency import measure, ratio
from mednext_edge.evaluation.limits import Limits
from mednext_edge.evaluation.metrics import METRICS
from mednext_edge.evaluation.report import Report
from mednext_edge.export.export import TARGETS
from mednext_edge.export.job import ExportRequest, GateFailure, run_export
from mednext_edge.runtime.predictor import Predictor
from mednext_edge.runtime.session import Session
from mednext_edge.runtime.torch_session import TorchSession
from mednext_edge.training.qat import as_trained

FP32, BF16, PTQ, BESIDE, CONTROL, QAT = "FP32", "bf16", "PTQ", "PTQ beside bf16", "accuracy control", "QAT"
NATIVE, NATIVE_QAT = "native PTQ", "native QAT"
ROWS = (FP32, PTQ, BF16, BESIDE, CONTROL, QAT, NATIVE, NATIVE_QAT)


def bundle(folder: Path, request: ExportRequest, progress: Callable[[str, int, int], None]) -> Report:
    """The report of a bundle, which is exported where there is none."""
    if not (folder / "report.json").exists():
        try:
            run_export(request, progress)
        except GateFailure as failure:
            print(failure, file=sys.stderr)
    return Report.model_validate_json((folder / "report.json").read_bytes())


def row(report: Report, fp32: Report, size: float) -> dict[str, Any]:
    """What one bundle reaches, and what it loses against the network in FP32."""
    found: dict[str, Any] = {
        "drop": {metric: drop.model_dump() for metric, drop in drops(fp32, report).items()},
        "layers": None if report.layers is None else report.layers.counts_by_precision,
        "float_layers": None if report.control is None else list(report.control.float_layers),
        "size_mb": size,
    }
    if report.classification is not None and report.classification.exported is not None:
        scores = report.classification.exported
        return found | {
            "cases": report.classification.labelled,
            "metrics": scores.metrics,
            "per_class": {"sensitivity": scores.sensitivity_per_class},
            "agreement": report.classification.agreement,
        }
    assert report.accuracy is not None and report.accuracy.exported is not None
    exported = report.accuracy.exported
    return found | {
        "cases": report.accuracy.labelled,
        "metrics": {metric: exported.mean(metric) for metric in METRICS},
        "per_class": {metric: getattr(exported, f"{metric}_per_class") for metric in METRICS},
        "agreement": report.accuracy.voxel_agreement,
    }


def drops(fp32: Report, other: Report) -> dict[str, MetricDrop]:
    """By metric, over the same cases; of a classification its accuracy alone."""
    if fp32.classification is None:
        metrics, names = tuple(METRICS), [case.case for case in fp32.per_case]
    else:
        metrics, names = ("accuracy",), [case.case for case in fp32.classified if case.reference is not None]
    found = {}
    for metric in metrics:
        tables = [report.case_scores(metric) for report in (fp32, other)]
        classes = list(tables[0][0])
        first, second = (np.array([[case.get(c) for c in classes] for case in t], np.float64) for t in tables)
        found[metric] = metric_drop(first, second, names, classes)
    return found


def agreement(checkpoint: str, engine: Session, cases: tuple[Case, ...]) -> float:
    """Part of the voxels where an engine has the label of the network that was trained in INT8."""
    model = load(checkpoint)
    equal = total = 0
    with TorchSession(as_trained(model), model.task) as twin:
        for case in cases:
            ours, theirs = (labels(Predictor(session), case) for session in (engine, twin))
            equal, total = equal + int((ours == theirs).sum()), total + ours.size
    return equal / total


def labels(predictor: Predictor, case: Case) -> NDArray[np.generic]:
    """Of every voxel, or of the whole image."""
    if predictor.session.task.model.kind == "segmentation":
        return predictor.predict(case.image())
    return np.array([predictor.classify(case.image()).argmax()])


def takes_native(checkpoint: str) -> bool:
    """Whether the native engine has a form of a network."""
    accepts = TARGETS["native"].accepts
    assert accepts is not None
    try:
        accepts(load(checkpoint))
    except ExportError:
        return False
    return True


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    first = next(iter(rows.values()))
    main = next(iter(first["drop"]))
    classes = next(iter(first["per_class"]))
    titles = [f"{classes} {name}" for name in first["per_class"][classes]]
    titles += [*first["metrics"], f"{main} drop (95 %)", "worst case", "speed-up (95 %)", "MB"]
    lines = ["| | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for name, found in rows.items():
        drop, gain = found["drop"][main], found["speedup"]
        cells = [number(value) for value in (*found["per_class"][classes].values(), *found["metrics"].values())]
        interval = drop["ci95"]
        cells.append(number(drop["mean"]) + (f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else ""))
        cells.append("" if drop["worst_case"] is None else number(drop["worst_case"]["drop"]))
        cells.append(f"{gain['value']:.2f} ({gain['low']:.2f} to {gain['high']:.2f})")
        cells.append(f"{found['size_mb']:.1f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for bundles and table.json")
    parser.add_argument("--qat", help="the checkpoint after `mednext-edge train --qat`")
    parser.add_argument("--target", default="openvino")
    parser.add_argument("--max-drop", type=float, default=0.001, help="gate of accuracy control")
    parser.add_argument("--metric", help="of the gate; the first of the network's kind by default")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--agreement-cases", type=int, default=5)
    parser.add_argument("--skip-control", action="store_true")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="of the table; FP32 is always one")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)

    common: dict[str, Any] = {"target": asked.target, "validate": asked.data}
    wanted: dict[str, dict[str, Any]] = {FP32: {"checkpoint": asked.checkpoint, "precision": "fp32"}}
    wanted[PTQ] = {"checkpoint": asked.checkpoint, "precision": "int8", "calib": asked.data}
    if {"avx512_bf16", "amx_bf16"} & set(features()) and "bf16" in TARGETS[asked.target].precisions:
        wanted[BF16] = {**wanted[FP32], "precision": "bf16"}
        wanted[BESIDE] = {**wanted[PTQ], "precision": "int8-bf16"}
    if not asked.skip_control:
        wanted[CONTROL] = {
            **wanted[PTQ],
            "accuracy_control": True,
            "limits": Limits(metric=asked.metric, mean=asked.max_drop),
        }
    if asked.qat:
        wanted[QAT] = {"checkpoint": asked.qat, "precision": "int8"}
    if asked.target == "openvino" and takes_native(asked.checkpoint):
        wanted |= {
            other: {**wanted[name], "target": "native"}
            for name, other in ((PTQ, NATIVE), (QAT, NATIVE_QAT))
            if name in wanted
        }
    wanted = {name: options for name, options in wanted.items() if name in (FP32, *asked.rows)}
    rows: dict[str, dict[str, Any]] = {}
    reports: dict[str, Report] = {}
    with track(sys.stderr.isatty()) as progress:
        for name, options in wanted.items():
            print(name, file=sys.stderr)
            folder = asked.out / name.replace(" ", "-")
            reports[name] = bundle(folder, ExportRequest(**{**common, **options}, out=folder), progress)
            files = [entry.path for entry in read_manifest(folder).files if entry.path.startswith("model")]
            rows[name] = row(reports[name], reports[FP32], sum((folder / file).stat().st_size for file in files) / 1e6)
    with ExitStack() as stack:
        sessions = {name: stack.enter_context(mx.open(asked.out / name.replace(" ", "-"))) for name in rows}
        patch = sessions[FP32].task.inference.patch
        times = measure(sessions, patch, rounds=asked.rounds)
        for name, found in rows.items():
            speedup = ratio(times[FP32], times[name])
            found["p50_ms"] = times[name].p50_ms
            found["speedup"] = {"value": speedup.value, "low": speedup.low, "high": speedup.high}
        if QAT in rows:
            cases = open_dataset(asked.data).validation[: asked.agreement_cases]
            rows[QAT]["twin_agreement"] = agreement(asked.qat, sessions[QAT], cases)
    result = {
        "checkpoint": asked.checkpoint,
        "target": asked.target,
        "patch": patch,
        "rounds": asked.rounds,
        "threads": torch.get_num_threads(),
        "rows": rows,
        "environment": environment().model_dump(mode="json"),
    }
    (asked.out / "table.json").write_text(json.dumps(result, indent=2) + "\n")
    print(markdown(rows))
    if QAT in rows:
        print(f"\nlabels of the engine and of the network trained in INT8: {rows[QAT]['twin_agreement']:.4%} equal")


if __name__ == "__main__":
    main()
