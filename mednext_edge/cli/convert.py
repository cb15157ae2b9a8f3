"""`mednext-edge convert`: checkpoints into another format, and the folds of a cross-validation into one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mednext_edge.cli.console import JSON_OPTION, emit_json, one_of, say, show_warning

if TYPE_CHECKING:
    from mednext_edge.models.loaded import LoadedModel

FORMATS = ("mednext-edge", "nnunet-v2", "monai")


def convert(
    checkpoints: Annotated[
        list[str],
        typer.Argument(metavar="CHECKPOINT...", help="Any checkpoint; several are averaged into one ensemble."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder to write; it must not exist.")],
    to: Annotated[
        str, typer.Option(metavar="|".join(FORMATS), help="Format.", callback=one_of("format", FORMATS))
    ] = FORMATS[0],
    folds: Annotated[
        bool, typer.Option("--folds", help="CHECKPOINT is a folder with fold_0, fold_1, ...: take all of them.")
    ] = False,
    task: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON of what the checkpoint does not say or says wrong: any of preprocessing, inference, labels, "
            "regions and name, as `inspect --json` shows them under task.",
        ),
    ] = None,
    json: Annotated[bool, JSON_OPTION] = False,
) -> None:
    """Write a checkpoint in another format or for another use, or the folds of a cross-validation as one ensemble.

    An ensemble averages the folds' probabilities inside its graph, as nnU-Net does outside; export, quantise, validate
    and predict take it like any other model, at the price of as many networks.

    Examples:

    - `mednext-edge convert --folds runs/hippocampus -o hippocampus-ensemble`
    - `mednext-edge convert --folds nnUNet_results/Dataset001/Trainer__nnUNetPlans__3d_fullres -o ensemble`
    - `mednext-edge convert runs/hippocampus --to monai -o hippocampus-monai`
    - `mednext-edge convert model.pth --task task.json -o liver`, for weights that say nothing of images and labels
    """
    from mednext_edge.checkpoints import load, save
    from mednext_edge.checkpoints.candidate import read_json
    from mednext_edge.checkpoints.ensemble import ensemble, fold_folders
    from mednext_edge.checkpoints.write_monai import write_monai
    from mednext_edge.checkpoints.write_nnunet_v2 import write_nnunet_v2
    from mednext_edge.errors import UsageError

    if out.exists():
        raise UsageError(f"{out} exists; choose another --out, or remove it")
    places = [str(fold) for place in checkpoints for fold in (fold_folders(place) if folds else (place,))]
    known = read_json(task) if task is not None else None
    models = [load(place, task=known) for place in places]
    model = ensemble(models) if len(models) > 1 else models[0]

    def save_ours(folder: Path, model: LoadedModel) -> tuple[str, ...]:
        import torch

        save(folder, model, dtype=torch.float32, provenance={"checkpoints": places})
        return ()

    if to != FORMATS[0] and model.quantization is not None:
        show_warning(f"{places[0]} was trained in INT8: {to} holds its weights, not the thresholds it learnt")
    writers = {"mednext-edge": save_ours, "nnunet-v2": write_nnunet_v2, "monai": write_monai}
    notes = writers[to](out, model)
    if json:
        emit_json({"model": out, "format": to, "checkpoints": places, "task": model.task, "notes": notes})
        return
    for note in notes:
        show_warning(note)
    say(f"{out} written as {to}: {model.task.model.variant}, {model.task.model.parameters:,} parameters", "green")
