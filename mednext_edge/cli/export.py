"""`mednext-export`, which is `mednext-edge export`: checkpoint in, verified bundle out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from mednext_edge.cli.console import (
    JSON_OPTION,
    MAX_CASE_DROP,
    MAX_CLASS_DROP,
    METRIC,
    NO_PROGRESS_OPTION,
    emit_json,
    one_of,
    say,
    show_facts,
    show_table,
    track,
)
from mednext_edge.cli.names import parse_names
from mednext_edge.cli.report import show_report
from mednext_edge.cli.sizes import parse_range, parse_size
from mednext_edge.errors import UsageError

if TYPE_CHECKING:
    from mednext_edge.export.job import ExportOutcome
    from mednext_edge.export.tune import Tuning
    from mednext_edge.nvidia.recipe import HardwareCompatibility

# As in the table of targets, which is not imported for a help text; a test compares the two.
TARGETS = ("native", "onnx", "openvino", "trt", "trt-rtx")
INT8_LAYERS = ("pointwise", "strided", "thin", "depthwise", "transposed", "dense", "norm")
ESTIMATORS = ("least-error", "percentile", "min-max")
COMPATIBILITY = ("none", "ampere+", "same-cc")
NVIDIA = "NVIDIA targets (trt, trt-rtx)"
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int8-bf16")
DEMO = "demo:brain-tissue"
CALIB_METHOD = typer.Option(
    metavar="|".join(ESTIMATORS),
    help="How the ranges of INT8 inputs are chosen: for the least squared error, without the largest 0.01 % of the "
    "values, or with all. [default: least-error]",
    callback=one_of("estimator", ESTIMATORS),
)


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="[CHECKPOINT]",
            help="A weights file, an nnU-Net fold or trainer folder, or a shipped model: demo:brain-tissue, "
            "demo:hippocampus.",
            show_default=True,
        ),
    ] = DEMO,
    target: Annotated[
        str,
        typer.Option(metavar="|".join(TARGETS), help="Engine to write.", callback=one_of("target", TARGETS)),
    ] = "openvino",
    int8: Annotated[bool, typer.Option("--int8", help="Short for --precision int8.")] = False,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(PRECISIONS),
            help="What the engine computes in; int8 is mixed with fp32 (int8-bf16: with "
            "bf16, on CPUs that have it), for NVIDIA with fp16. [default: fp32, native int8, for NVIDIA fp16]",
            callback=one_of("precision", PRECISIONS),
        ),
    ] = None,
    calib: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images to calibrate INT8 on: a folder with dataset.json, or with images and labels; or demo:NAME. "
            "Its training cases are used. [default: the demo's data, for a demo model]",
        ),
    ] = None,
    validate: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Labelled images to validate on; its validation cases are used. "
            "[default: the demo's data, for a demo model]",
        ),
    ] = None,
    max_drop: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Largest drop of the metric against FP32; more ends with exit code 3."),
    ] = 0.005,
    max_class_drop: Annotated[float | None, MAX_CLASS_DROP] = None,
    max_case_drop: Annotated[float | None, MAX_CASE_DROP] = None,
    metric: Annotated[str | None, METRIC] = None,
    patch: Annotated[
        str | None,
        typer.Option(metavar="D H W", help="Patch that the engine is made for. [default: the checkpoint's]"),
    ] = None,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Let the engine take patches of any size.")] = False,
    calib_samples: Annotated[
        int | None, typer.Option(min=1, help="Calibration patches to draw. [default: chosen from the data]")
    ] = None,
    calib_method: Annotated[str | None, CALIB_METHOD] = None,
    gpu_arch: Annotated[
        str | None,
        typer.Option(
            "--gpu-arch",
            metavar="CC[,CC]",
            help="Compute capabilities to build for, such as 8.6,8.9. [default: trt the GPU of this machine, "
            "trt-rtx 8.6,8.9,12.0]",
            rich_help_panel=NVIDIA,
        ),
    ] = None,
    defer_build: Annotated[
        bool,
        typer.Option(
            "--defer-build",
            help="Write graph and recipe alone; mednext-edge build finishes the bundle on the device.",
            rich_help_panel=NVIDIA,
        ),
    ] = False,
    int8_layers: Annotated[
        str | None,
        typer.Option(
            "--int8-layers",
            metavar="KIND[,KIND]",
            help=f"Layers to quantise, of {', '.join(INT8_LAYERS)}. [default: all; for NVIDIA pointwise]",
        ),
    ] = None,
    accuracy_control: Annotated[
        bool,
        typer.Option(
            "--accuracy-control",
            help="Keep the most sensitive layers in float, as many as --max-drop asks for.",
        ),
    ] = False,
    sensitivity: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --accuracy-control: folder of mednext-edge quantize --sensitivity, to go on with and to keep.",
        ),
    ] = None,
    control_minutes: Annotated[
        float | None,
        typer.Option(
            "--control-minutes",
            min=0,
            help="Budget of --accuracy-control; the best until then is kept. [default: none]",
        ),
    ] = None,
    min_patch: Annotated[
        str | None,
        typer.Option(
            "--min-patch",
            metavar="D H W",
            help="Smallest patch the engine takes. [default: --patch]",
            rich_help_panel=NVIDIA,
        ),
    ] = None,
    max_patch: Annotated[
        str | None,
        typer.Option(
            "--max-patch",
            metavar="D H W",
            help="Largest patch the engine takes. [default: --patch]",
            rich_help_panel=NVIDIA,
        ),
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="MIB",
            help="Builder's scratch memory. [default: all of the device's]",
            rich_help_panel=NVIDIA,
        ),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(
            "--optimization-level",
            min=0,
            max=5,
            help="Builder's effort. [default: the builder's]",
            rich_help_panel=NVIDIA,
        ),
    ] = None,
    hardware_compatibility: Annotated[
        str,
        typer.Option(
            "--hardware-compatibility",
            metavar="|".join(COMPATIBILITY),
            help="Other GPUs that the engine runs on; slower.",
            callback=one_of("hardware compatibility", COMPATIBILITY),
            rich_help_panel=NVIDIA,
        ),
    ] = "none",
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible",
            help="The engine runs in newer releases of the same major version.",
            rich_help_panel=NVIDIA,
        ),
    ] = False,
    tune: Annotated[
        bool | None,
        typer.Option(
            "--tune/--no-tune",
            envvar="MEDNEXT_TUNE",
            help="Choose by measurement on this machine (openvino): the form of every up block, CPU threads, and with "
            "--tune layers of INT8 that are faster in float; kept for the next time. [default: for a short time]",
        ),
    ] = None,
    tune_seconds: Annotated[
        float | None,
        typer.Option("--tune-seconds", min=0, help="Longest time to measure for. [default: 20, with --tune 60]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The bundle to write. [default: NAME.TARGET-PRECISION]", dir_okay=True),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle at --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would be done.")] = False,
    json: Annotated[bool, JSON_OPTION] = False,
    no_progress: Annotated[bool, NO_PROGRESS_OPTION] = False,
) -> None:
    """Turn a checkpoint into an engine for one target, validated on real images.

    The network is fused exactly, quantised where INT8 is asked for, written as a bundle (engine, manifest
    with digests, report with figures and pictures) and compared with its FP32 form. Nothing half-written is left.

    Examples:

    - `mednext-export --target openvino --int8`
    - `mednext-export nnUNet_results/.../fold_0 --target openvino --int8 --calib DATA --validate DATA`
    - `mednext-export nnUNet_results/.../fold_0 --target native --precision bf16 --validate DATA`, without calibration
    - `mednext-export demo:hippocampus --target onnx --int8 --accuracy-control --calib DATA --validate DATA`
    - `mednext-export model.pth --target onnx --precision fp32 --out model.onnx-fp32`
    - `mednext-export --target trt --int8 --defer-build`, then on the device `mednext-edge build brain-tissue.trt-int8`
    - `mednext-export --target trt-rtx --gpu-arch 8.6,8.9,12.0`
    """
    if int8 and (precision or "int8").split("-")[0] != "int8":
        raise UsageError(f"found --int8 and --precision {precision}; give one of them")
    if tune_seconds is not None and tune is False:
        raise UsageError("found --tune-seconds and --no-tune; give one of them")
    from mednext_edge.evaluation.limits import Limits
    from mednext_edge.export.job import EngineDeferred, ExportRequest, GateFailure, run_export
    from mednext_edge.export.targets import BuildOptions
    from mednext_edge.export.tune import QUICK, THOROUGH

    effort = None if tune is False else THOROUGH if tune else QUICK
    if effort is not None and tune_seconds is not None:
        effort = replace(effort, seconds=tune_seconds)
    request = ExportRequest(
        checkpoint=checkpoint,
        target=target,
        precision=precision or "int8" if int8 else precision,
        calib=calib,
        validate=validate,
        limits=Limits(metric=metric, mean=max_drop, per_class=max_class_drop, per_case=max_case_drop),
        patch=parse_size(patch),
        calib_samples=calib_samples,
        calib_method=calib_method or ESTIMATORS[0],
        out=out,
        force=force,
        dynamic=dynamic,
        build=BuildOptions(
            archs=parse_names(gpu_arch),
            defer=defer_build,
            range=parse_range(patch, min_patch, max_patch),
            workspace_mib=workspace,
            optimization_level=optimization_level,
            hardware_compatibility=cast("HardwareCompatibility", hardware_compatibility),
            version_compatible=version_compatible,
        ),
        int8_layers=parse_names(int8_layers),
        accuracy_control=accuracy_control,
        sensitivity=sensitivity,
        control_minutes=control_minutes,
        tune=effort,
        dry_run=dry_run,
    )
    tell = emit_json if json else _show
    try:
        with track(not no_progress) as progress:
            outcome = run_export(request, progress)
    except (GateFailure, EngineDeferred) as failure:
        tell(failure.outcome)
        raise
    tell(outcome)


def _show(outcome: ExportOutcome) -> None:
    if not outcome.written:
        show_facts("Nothing was written; this is what would be done", outcome.plan.items())
        return
    if outcome.report is not None:
        show_report(outcome.report)
    if outcome.tuning is not None:
        _show_forms(outcome.tuning)
        _show_layers(outcome.tuning)
        _show_threads(outcome.tuning)
    if outcome.gate is not None:
        say(f"accuracy gate {outcome.gate.status}: {outcome.gate.reason}")
    say(f"{outcome.path} written in {outcome.seconds:.0f} s", "green")


def _show_forms(tuning: Tuning) -> None:
    if all(block.ratio is None for block in tuning.blocks):
        say("no form of an up block was measured in that time: the defaults stay, and --tune-seconds gives more")
        return
    show_table(
        "Forms of the up blocks: time transposed over parity",
        ["block", "input", "form", "ratio", "interval"],
        [(c.name, " x ".join(map(str, c.size)), c.form, *_ratio(c.ratio)) for c in tuning.blocks],
    )


def _show_layers(tuning: Tuning) -> None:
    if tuning.layers is None:
        return
    found = tuning.layers
    measured = sum(layer.ratio is not None for layer in found.layers)
    faster = sum(layer.saved_ms > 0 for layer in found.layers)
    say(f"{measured} of {len(found.layers)} layers measured alone, {faster} of them faster in float")
    if found.trials:
        show_table(
            "The whole network: time with layers in float over all in INT8",
            ["layers in float", "kept", "ratio", "interval"],
            [(str(t.float_layers), "yes" if t.kept else "no", *_ratio(t.ratio)) for t in found.trials],
        )


def _show_threads(tuning: Tuning) -> None:
    found = tuning.threads
    if found is None or not found.counts:
        return
    show_table(
        f"Threads: {found.chosen or found.own} chosen, OpenVINO takes {found.own} by itself",
        ["threads", "against", "ratio", "interval"],
        [(str(c.threads), "" if c.against is None else str(c.against), *_ratio(c.ratio)) for c in found.counts],
    )


def _ratio(ratio: tuple[float, float, float] | None) -> tuple[str, str]:
    return ("not measured", "") if ratio is None else (f"{ratio[0]:.2f}", f"{ratio[1]:.2f} to {ratio[2]:.2f}")
