"""`mednext-edge quantize --sensitivity`: what INT8 costs and gains, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mednext_edge.cli.console import (
    JSON_OPTION,
    NO_PROGRESS_OPTION,
    emit_json,
    one_of,
    say,
    show_table,
    track,
)
from mednext_edge.cli.export import CALIB_METHOD, DEMO, ESTIMATORS, INT8_LAYERS, TARGETS
from mednext_edge.cli.names import parse_names
from mednext_edge.cli.sizes import parse_size
from mednext_edge.errors import UsageError

SHOWN = 15


def quantize(
    checkpoint: Annotated[str, typer.Argument(metavar="[CHECKPOINT]", help="As of mednext-export.")] = DEMO,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Measure every layer alone in INT8, the others in float.")
    ] = False,
    target: Annotated[
        str,
        typer.Option(metavar="|".join(TARGETS), help="Whose INT8.", callback=one_of("target", TARGETS)),
    ] = "openvino",
    calib: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Images to calibrate on. [default: the demo's data, for a demo model]"),
    ] = None,
    int8_layers: Annotated[
        str | None,
        typer.Option(
            "--int8-layers",
            metavar="KIND[,KIND]",
            help=f"Layers to look at, of {', '.join(INT8_LAYERS)}. [default: the target's]",
        ),
    ] = None,
    patch: Annotated[str | None, typer.Option(metavar="D H W", help="[default: the checkpoint's]")] = None,
    calib_samples: Annotated[
        int | None, typer.Option(min=1, help="Calibration patches to draw. [default: chosen from the data]")
    ] = None,
    calib_method: Annotated[str | None, CALIB_METHOD] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after so many; the same command goes on. [default: no limit]")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for sensitivity.json and .png.")] = Path(
        "sensitivity"
    ),
    json: Annotated[bool, JSON_OPTION] = False,
    no_progress: Annotated[bool, NO_PROGRESS_OPTION] = False,
) -> None:
    """Say which layers INT8 hurts, and which ones it pays for. A run that was stopped goes on where it was.

    Examples:

    - `mednext-edge quantize --sensitivity --out brain-tissue.sensitivity`
    - `mednext-edge quantize nnUNet_results/.../fold_0 --sensitivity --target trt --calib DATA --minutes 30`
    """
    if not sensitivity:
        raise UsageError(
            "found nothing to do; give --sensitivity. An INT8 engine is written by `mednext-export --int8`, with "
            "--accuracy-control where its accuracy must be held"
        )
    from mednext_edge.export.job import DEMO_DATA
    from mednext_edge.export.sensitivity import run_sensitivity

    data = calib or (checkpoint if checkpoint in DEMO_DATA else None)
    if data is None:
        raise UsageError("sensitivity needs images to calibrate on; give --calib DATA")
    with track(not no_progress) as progress:
        report = run_sensitivity(
            checkpoint,
            target=target,
            calib=data,
            out=out,
            int8_layers=parse_names(int8_layers),
            patch=parse_size(patch),
            calib_samples=calib_samples,
            calib_method=calib_method or ESTIMATORS[0],
            minutes=minutes,
            progress=progress,
        )
    if json:
        emit_json(report)
        return
    first = sorted(report.layers, key=lambda layer: layer.price, reverse=True)[:SHOWN]
    show_table(
        "The most expensive layers, error for gain",
        ("layer", "kind", "gain", "NMSE", "cosine", "Dice drop"),
        [
            (
                layer.name,
                layer.kind,
                f"{layer.gain:.2%}",
                f"{layer.nmse:.2e}",
                f"{layer.cosine:.6f}",
                "none" if layer.dice_drop is None else f"{layer.dice_drop:.5f}",
            )
            for layer in first
        ],
    )
    say(f"{len(report.layers)} layers in {out}", "green" if report.complete else "yellow")
    if not report.complete:
        say("the time was up; the same command goes on where this one stopped")
