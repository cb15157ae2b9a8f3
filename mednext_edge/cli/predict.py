"""`mednext-edge predict`: label maps for a folder of images, with nnU-Net's flag names."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mednext_edge.cli.console import (
    DEVICE_OPTION,
    JSON_OPTION,
    NO_PROGRESS_OPTION,
    THREADS_OPTION,
    emit_json,
    say,
    show_error,
    track,
)
from mednext_edge.errors import DataError, UsageError

if TYPE_CHECKING:
    from mednext_edge.data.dataset import Case


def predict(
    source: Annotated[str, typer.Argument(metavar="BUNDLE|CHECKPOINT", help="What to predict with.")],
    images: Annotated[
        Path,
        typer.Option(
            "-i",
            "--input",
            metavar="IN",
            help="A NIfTI file, or a folder of them; case_0000.nii.gz, case_0001.nii.gz are channels of one case.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="OUT", help="Folder for the label maps; made when it is not there."),
    ],
    step_size: Annotated[
        float | None,
        typer.Option(
            "-step_size",
            metavar="STEP",
            help="Step of the sliding window, as a part of the patch. [default: the task's]",
        ),
    ] = None,
    disable_tta: Annotated[
        bool, typer.Option("--disable_tta", help="Do not average over flips; 8 times as fast in 3-D.")
    ] = False,
    num_parts: Annotated[
        int, typer.Option("-num_parts", metavar="N", min=1, help="Split the cases among N processes.")
    ] = 1,
    part_id: Annotated[
        int, typer.Option("-part_id", metavar="ID", min=0, help="Which part this process does, from 0.")
    ] = 0,
    continue_prediction: Annotated[
        bool, typer.Option("--continue_prediction", help="Skip the cases whose label map is there.")
    ] = False,
    device: Annotated[str | None, DEVICE_OPTION] = None,
    threads: Annotated[int | None, THREADS_OPTION] = None,
    json: Annotated[bool, JSON_OPTION] = False,
    no_progress: Annotated[bool, NO_PROGRESS_OPTION] = False,
) -> None:
    """Segment images; each label map lies on the grid of its image.

    Examples:

    - `mednext-edge predict hippocampus.openvino-int8 -i images -o labels --disable_tta`
    - `mednext-edge predict hippocampus.openvino-int8 -i images -o labels -num_parts 2 -part_id 0`
    """
    from mednext_edge.cli.sources import open_source
    from mednext_edge.data.dataset import list_images
    from mednext_edge.data.volume import write_labels
    from mednext_edge.runtime.predictor import Predictor

    cases = _part(list_images(images), num_parts, part_id)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; expected a folder for -o")
    done, failed = [], []
    with track(not no_progress) as progress, open_source(source, device=device, threads=threads) as session:
        out.mkdir(parents=True, exist_ok=True)
        for number, case in enumerate(cases, 1):
            target = out / f"{case.name}.nii.gz"
            if continue_prediction and target.is_file():
                continue
            report = partial(progress, f"{case.name} ({number} of {len(cases)})")
            predictor = Predictor(session, step=step_size, mirror=not disable_tta, progress=report)
            start = time.perf_counter()
            try:
                image = case.image()
                write_labels(target, predictor.predict(image), image)
            except DataError as error:  # one bad image does not cost the others of a long run
                show_error(f"{case.name}: {error}")
                failed.append({"case": case.name, "error": str(error)})
                continue
            done.append({"case": case.name, "labels": target, "seconds": round(time.perf_counter() - start, 3)})
    skipped = len(cases) - len(done) - len(failed)
    if json:
        emit_json({"source": source, "cases": done, "failed": failed, "skipped": skipped})
    else:
        say(f"{len(done)} label maps written to {out}" + (f", {skipped} were there" if skipped else ""), "green")
    if failed:
        raise DataError(f"{len(failed)} of {len(cases)} images could not be predicted; the messages above say why")


def _part(cases: tuple[Case, ...], parts: int, part: int) -> tuple[Case, ...]:
    """Every `parts`-th case from the `part`-th on.

    Raises:
        UsageError: there is no such part.
    """
    if part >= parts:
        raise UsageError(f"found -part_id {part} with -num_parts {parts}; expected 0 to {parts - 1}")
    return cases[part::parts]
