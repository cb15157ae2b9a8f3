"""`mednext-edge train`: a network from labelled images, resumable after a kill."""

from __future__ import annotations

import functools
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from mednext_edge.cli.console import (
    JSON_OPTION,
    NO_PROGRESS_OPTION,
    Report,
    emit_json,
    one_of,
    say,
    show_warning,
    track,
)
from mednext_edge.cli.export import CALIB_METHOD, ESTIMATORS, TARGETS
from mednext_edge.cli.names import parse_names
from mednext_edge.cli.sizes import parse_size

if TYPE_CHECKING:
    from mednext_edge.training.loop import Progress
    from mednext_edge.training.plan import Amp, Keep

AMP = ("auto", "fp32", "bf16", "fp16")
KEEP = ("best", "last")
# As in the table of families, which is not imported for a help text; a test compares the two.
NETWORKS = ("mednext", "cmunext", "mednext2d")
SIZES = "S, B, M, L of a mednext; S, base, L of a cmunext; tiny, small, base of a mednext2d"


def train(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Labelled images: a folder with dataset.json (Decathlon, nnU-Net), one with images and labels or "
            "masks, one with a folder for each class, a JSON file that describes raster images, or demo:brain-tissue.",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Run folder; the model is written to it.")],
    network: Annotated[
        str, typer.Option(metavar="|".join(NETWORKS), help="Kind of network.", callback=one_of("network", NETWORKS))
    ] = NETWORKS[0],
    variant: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Size of the network: " + SIZES + ". [default: the smallest]")
    ] = None,
    kernel: Annotated[
        int | None, typer.Option(metavar="K", help="Depthwise kernel of a mednext: 3, 5 or 7. [default: 3]")
    ] = None,
    grn: Annotated[bool, typer.Option("--grn", help="Global response normalisation in the blocks.")] = False,
    patch: Annotated[
        str | None,
        typer.Option(
            metavar="D H W", help="Training patch. [default: planned from the images; 256 256 for raster images]"
        ),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(
            metavar="D H W|own",
            help="Voxel size to train at, mm; own leaves the images as they are. [default: nnU-Net's choice where they "
            "differ; the authors of MedNeXt take 1 1 1]",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Patches a step, of all processes. [default: 2; on a GPU what memory and data allow]"),
    ] = None,
    tiled: Annotated[
        bool, typer.Option("--tiled", help="Cut patches of raster images, instead of stretching them to one patch.")
    ] = False,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Pseudo-epochs. [default: 1000; with --qat 10]", show_default=False)
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Optimiser steps an epoch. [default: 250; with --qat 25]", show_default=False),
    ] = None,
    validate_every: Annotated[int, typer.Option(min=1, help="Epochs between validations.")] = 10,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate at the start; it decays to 0. [default: 1e-3; with --qat 1e-5]", show_default=False
        ),
    ] = None,
    amp: Annotated[
        str,
        typer.Option(
            metavar="|".join(AMP),
            help="What the network computes in; auto is what the device is fast in.",
            callback=one_of("precision", AMP),
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of weights, patches and augmentation.")] = 0,
    augment: Annotated[bool, typer.Option("--augment/--no-augment", help="nnU-Net's augmentation.")] = True,
    masked: Annotated[
        bool | None,
        typer.Option(
            "--masked-norm/--whole-norm",
            help="Normalise intensities over the non-zero voxels alone, or over the whole image. "
            "[default: as nnU-Net decides, by how much of the images is zero]",
        ),
    ] = None,
    init: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="Start from these weights instead of random ones.")
    ] = None,
    upkern_from: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Start from the same network trained with another kernel size, its kernels resampled (UpKern).",
        ),
    ] = None,
    qat: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Train this FP32 network on in INT8, with itself as the teacher (quantisation-aware training).",
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="|".join(TARGETS),
            help="With --qat: whose INT8; other targets take what they can of it.",
            callback=one_of("target", TARGETS),
        ),
    ] = "openvino",
    int8_layers: Annotated[
        str | None,
        typer.Option(
            "--int8-layers", metavar="KIND[,KIND]", help="With --qat: layers in INT8. [default: the target's]"
        ),
    ] = None,
    calib_samples: Annotated[
        int | None, typer.Option(min=1, help="With --qat: calibration patches. [default: chosen from the patch]")
    ] = None,
    calib_method: Annotated[str | None, CALIB_METHOD] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="A torch device, such as cpu or cuda.")] = "cpu",
    ema: Annotated[
        float, typer.Option(metavar="DECAY", help="Average the weights over the steps, such as 0.999; 0 for not.")
    ] = 0.0,
    keep: Annotated[
        str,
        typer.Option(
            metavar="|".join(KEEP),
            help="Weights of the model that is written: of the best validation, or of the last epoch.",
            callback=one_of("weights to keep", KEEP),
        ),
    ] = "best",
    accumulate: Annotated[int, typer.Option(min=1, help="Cut each batch into parts, to save memory.")] = 1,
    checkpoint_gradients: Annotated[
        bool, typer.Option("--checkpoint-gradients", help="Compute activations twice, to save memory.")
    ] = False,
    compile_net: Annotated[bool, typer.Option("--compile", help="Run the network through torch.compile.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare batches; 0 for a thread.")] = 0,
    fused: Annotated[
        bool,
        typer.Option(
            "--fused", help="Compute blocks and depthwise convolutions with our CUDA kernels. Not yet run on hardware."
        ),
    ] = False,
    fold: Annotated[
        str | None,
        typer.Option(
            metavar="0..4|all",
            help="Hold out this fold of nnU-Net's five; all trains on everything. [default: the data's own validation "
            "cases, else fold 0]",
        ),
    ] = None,
    splits: Annotated[
        Path | None, typer.Option(metavar="JSON", help="Folds as in nnU-Net's splits_final.json, instead of its rule.")
    ] = None,
    cross_validate: Annotated[
        bool,
        typer.Option(
            "--cross-validate",
            help="Train every fold, into fold_0, fold_1, ... of --out; then one ensemble and the held-out scores.",
        ),
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log to --out/tensorboard as well.")] = False,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Show what would be trained, and stop.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that is in --out.")] = False,
    json: Annotated[bool, JSON_OPTION] = False,
    no_progress: Annotated[bool, NO_PROGRESS_OPTION] = False,
) -> None:
    """Train a network, with the recipe of MedNeXt's authors.

    The run folder holds the plan, the log and, at the end, model.json with weights.safetensors, which every other
    command takes. After a kill, the same command with --resume goes on from the last whole epoch.

    Examples:

    - `mednext-edge train Task04_Hippocampus --variant S --kernel 3 --epochs 50 -o runs/hippocampus`
    - `mednext-edge train Task04_Hippocampus --kernel 5 --upkern-from runs/hippocampus -o runs/hippocampus-k5`
    - `mednext-edge train Task04_Hippocampus --qat runs/hippocampus -o runs/hippocampus-int8`
    - `mednext-edge train Dataset001_Heart --cross-validate --spacing 1 1 1 -o runs/heart`
    - `mednext-edge train Dataset001_Heart --plan-only -o runs/heart`
    - `torchrun --nproc-per-node 2 --no-python mednext-edge train Dataset001_Heart --device cuda -o runs/heart`
    - `mednext-edge train busi.json --network cmunext --variant S --patch 256 256 --batch 8 -o runs/busi`
    - `mednext-edge train demo:brain-tissue --epochs 2 --steps 10 --patch 64 64 64 -o runs/try`
    """
    from mednext_edge.cli.plan import parse_spacing, show_plan
    from mednext_edge.errors import UsageError
    from mednext_edge.training.job import Hooks, TrainingRequest, prepare_training
    from mednext_edge.training.qat import QatOptions
    from mednext_edge.training.team import join

    if qat is None and (int8_layers or calib_samples or calib_method):
        raise UsageError("found --int8-layers, --calib-samples or --calib-method without --qat, which they belong to")
    request = TrainingRequest(
        data=data,
        out=out,
        network=network,
        variant=variant,
        kernel=kernel,
        grn=grn,
        patch=parse_size(patch),
        spacing=parse_spacing(spacing),
        batch=batch,
        tiled=tiled,
        epochs=epochs,
        steps=steps,
        validate_every=validate_every,
        learning_rate=lr,
        amp=cast("Amp", amp),
        seed=seed,
        augment=augment,
        masked=masked,
        init=init,
        upkern_from=upkern_from,
        qat=qat,
        int8=QatOptions(target, parse_names(int8_layers), calib_samples, calib_method or ESTIMATORS[0]),
        device=device,
        ema=ema,
        keep=cast("Keep", keep),
        accumulate=accumulate,
        checkpoint_gradients=checkpoint_gradients,
        compile=compile_net,
        workers=workers,
        fused=fused,
        fold=_parse_fold(fold),
        splits=splits,
        cross_validate=cross_validate,
        tensorboard=tensorboard,
        resume=resume,
    )
    request.check()
    command = shlex.join(["mednext-edge", *sys.argv[1:]])
    record: dict[str, Any] = {}
    with join(device) as team:
        job = prepare_training(request, team, lambda note: say(f"note: {note}", "yellow") if team.leads else None)
        if team.leads:
            show_plan(job.sized, job.task, job.part(job.runs[0]), device)
        if plan_only:
            if json and team.leads:
                emit_json({"plan": job.sized.plan, "task": job.task, "memory": job.sized.memory_json})
            return
        for number in job.runs:
            title = f"train fold {number}" if number is not None else "train"
            with track(not no_progress and team.leads) as progress:
                hooks = Hooks(
                    step=functools.partial(_show_step, progress, title, team.leads),
                    case=functools.partial(progress, f"read {title.removeprefix('train')}".strip()),
                    calibration=progress,
                    note=show_warning if team.leads else lambda _: None,
                )
                record = job.train(number, hooks, team, command) or {}
        if not team.leads:
            return
    if cross_validate:
        from mednext_edge.cli.cross_validation import finish

        record = finish(job.dataset, out, job.folds, device=device, progress=not no_progress)
    if json:
        emit_json({"model": out, "task": job.task, **record})
        return
    say(f"{out / 'model.json'} written; export it with `mednext-export {out} --calib {data} --int8`", "green")


def _show_step(progress: Report, title: str, leads: bool, step: Progress) -> None:
    progress(f"{title} · loss {step.loss:.3f} · Dice {step.dice:.3f}", step.step, step.total)
    if step.validation is not None and leads:
        say(f"step {step.step}: " + ", ".join(f"{name} {dice:.4f}" for name, dice in step.validation.items()))


def _parse_fold(fold: str | None) -> int | Literal["all"] | None:
    """A number from 0 on, `all`, or nothing.

    Raises:
        UsageError: anything else.
    """
    from mednext_edge.errors import UsageError

    if fold is None or fold == "all":
        return fold  # type: ignore[return-value]
    if not fold.isdecimal():
        raise UsageError(f"found --fold {fold}; expected a number from 0 on, or all")
    return int(fold)
