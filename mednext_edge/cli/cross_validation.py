"""After the last fold: the ensemble of all, and the scores of every case by the fold that had not seen it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mednext_edge.cli.console import say, show_table, track

if TYPE_CHECKING:
    from mednext_edge.data.dataset import Dataset
    from mednext_edge.data.folds import Fold

SCORES = "cross-validation.json"


def finish(dataset: Dataset, out: Path, folds: Sequence[Fold] | None, *, device: str, progress: bool) -> dict[str, Any]:
    """Write the ensemble's `model.json` and `cross-validation.json` into `out`; returns what the latter holds."""
    import torch

    from mednext_edge.checkpoints import load, save
    from mednext_edge.checkpoints.ensemble import ensemble, fold_folders
    from mednext_edge.data.folds import take_fold
    from mednext_edge.evaluation.bootstrap import class_mean, paired_interval
    from mednext_edge.evaluation.validate import validate
    from mednext_edge.runtime.torch_session import TorchSession

    places = fold_folders(out)
    models = [load(place) for place in places]
    cases: list[dict[str, Any]] = []
    with track(progress) as report:
        for number, model in enumerate(models):
            held = take_fold(dataset, number, folds).validation
            with TorchSession.of(model, device) as session:
                found = validate(session, held, progress=lambda what, done, total: report(what, done, total))
            cases += [{"case": row.case, "fold": number, "dice": row.dice, "nsd": row.nsd} for row in found.per_case]
    names = list(models[0].task.masks)
    summary: dict[str, Any] = {}
    for metric in ("dice", "nsd"):
        table = np.array([[_number(row[metric], name) for name in names] for row in cases], np.float64)
        summary[metric] = {
            # The drop to nothing is the mean itself, and its interval the mean's.
            name: {"mean": class_mean(column), "ci95": paired_interval(column, np.where(np.isnan(column), np.nan, 0.0))}
            for name, column in [*((n, table[:, [i]]) for i, n in enumerate(names)), ("mean", table)]
        }
    record = {"folds": len(models), "summary": summary, "per_case": cases}
    from pydantic_core import to_json

    (out / SCORES).write_bytes(to_json(record, indent=2, inf_nan_mode="null") + b"\n")
    save(out, ensemble(models), dtype=torch.float32, provenance={"folds": [p.name for p in places], "scores": SCORES})
    show_table(
        f"held-out cases of {len(models)} folds",
        ("", "Dice", "95 % interval", "surface Dice at 1 mm", "95 % interval"),
        (
            (name, *(cell for metric in ("dice", "nsd") for cell in _cells(summary[metric][name])))
            for name in (*names, "mean")
        ),
    )
    say(f"{out / SCORES} has every case; {out / 'model.json'} is the ensemble of the folds")
    return record


def _number(scores: dict[str, float | None] | None, name: str) -> float:
    value = None if scores is None else scores[name]
    return float("nan") if value is None else value


def _cells(entry: dict[str, Any]) -> tuple[str, str]:
    interval = entry["ci95"]
    return f"{entry['mean']:.4f}", f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "one case"
