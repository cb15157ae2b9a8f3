"""`mednext-edge predict`: label maps or classes for a folder of images, with nnU-Net's flag names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mednext_edge.cli.console import (
    DEVICE_OPTION,
    JSON_OPTION,
    NO_PROGRESS_OPTION,
    THREADS_OPTION,
    emit_json,
    one_of,
    say,
    show_error,
    track,
)
from mednext_edge.errors import DataError, UsageError

if TYPE_CHECKING:
    from mednext_edge.cli.console import Report
    from mednext_edge.data.dataset import Case
    from mednext_edge.runtime.session import Session
    from mednext_edge.serving.cohort import CaseResult, Settings


LEDGER = "ledger.jsonl"
"""In the output folder of a run on Ray: a line for each case that ended."""


FORMATS = ("nifti", "png", "dicom-seg")
"""As in the table of output formats, which is not imported for a help text; a test compares the two."""


def predict(
    source: Annotated[str, typer.Argument(metavar="BUNDLE|CHECKPOINT", help="What to predict with.")],
    images: Annotated[
        Path,
        typer.Option(
            "-i",
            "--input",
            metavar="IN",
            help="A NIfTI file, a raster image (PNG, JPEG, BMP, TIFF), a folder of either (case_0000.nii.gz, "
            "case_0001.nii.gz are channels of one case), or a folder of DICOM series.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="Folder for the label maps, or for predictions.csv of a classifier; made when it is not there.",
        ),
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
        bool, typer.Option("--continue_prediction", help="Skip the cases whose prediction is there.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="|".join(FORMATS),
            help="Of the label maps; dicom-seg is for DICOM series. [default: png for raster images, else nifti]",
            callback=one_of("output format", FORMATS),
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Spread the cases over a Ray cluster: auto, HOST:6379, ray://HOST:10001, or local for this machine.",
        ),
    ] = None,
    device: Annotated[str | None, DEVICE_OPTION] = None,
    threads: Annotated[int | None, THREADS_OPTION] = None,
    json: Annotated[bool, JSON_OPTION] = False,
    no_progress: Annotated[bool, NO_PROGRESS_OPTION] = False,
) -> None:
    """Segment images, each label map on the grid of its image; or classify them, into one table.

    Examples:

    - `mednext-edge predict hippocampus.openvino-int8 -i images -o labels --disable_tta`
    - `mednext-edge predict hippocampus.openvino-int8 -i images -o labels -num_parts 2 -part_id 0`

    - `mednext-edge predict hippocampus.openvino-int8 -i /shared/images -o /shared/labels --ray HEAD:6379`

    - `mednext-edge predict hippocampus.openvino-int8 -i DICOM_FOLDER -o labels --format dicom-seg`
    - `mednext-edge predict busi.openvino-int8 -i frame.png -o masks`
    """
    from mednext_edge.cli.sources import open_source, source_digest
    from mednext_edge.data.class_table import ClassTable, cases_in_table
    from mednext_edge.data.dataset import list_images
    from mednext_edge.serving.cohort import Settings, label_file, part_of

    cases = part_of(list_images(images), num_parts, part_id)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; expected a folder for -o")
    if ray is not None and num_parts > 1:
        raise UsageError("--ray hands out the cases by itself; leave -num_parts and -part_id out")
    settings = Settings(
        out=out.resolve(),
        output=output,
        step=step_size,
        mirror=not disable_tta,
        digest=source_digest(source) if output == "dicom-seg" else "",
        version=version("mednext-edge"),
    )
    part = part_id if num_parts > 1 else None
    known = cases_in_table(out, part) if continue_prediction else set()

    def there(case: Case) -> bool:
        return case.name in known or label_file(settings, case.name, case.output).is_file()

    left = [case for case in cases if not (continue_prediction and there(case))]
    table: ClassTable | None = None
    results: list[CaseResult] = []
    with track(not no_progress) as progress:
        if ray is not None:
            source = str(Path(source).resolve()) if Path(source).exists() else source
            session_for = partial(_open, source, device, threads)
            found = _on_ray(ray, session_for, settings, left, progress)
        else:
            found = _here(partial(open_source, source, device=device, threads=threads), settings, left, progress)
        for result in found:
            results.append(result)
            if result.error is not None:
                show_error(f"{result.case}: {result.error}")
            elif result.answer is not None:
                table = table or ClassTable(out, tuple(result.probabilities), part, resume=continue_prediction)
                table.add(result.case, result.answer, result.probabilities)
    _report(results, len(cases), source, out, json)


def _here(
    open_session: Callable[[], Session], settings: Settings, cases: list[Case], progress: Report
) -> Iterator[CaseResult]:
    """The cases one after the other, in this process."""
    from mednext_edge.serving.cohort import CaseRunner

    with open_session() as session:
        settings.out.mkdir(parents=True, exist_ok=True)
        runner = CaseRunner(session, settings)
        for number, case in enumerate(cases, 1):
            yield runner.run(case, partial(progress, f"{case.name} ({number} of {len(cases)})"))


def _on_ray(
    address: str, open_session: Callable[[int], Session], settings: Settings, cases: list[Case], progress: Report
) -> Iterator[CaseResult]:
    """The cases as the replicas of a cluster finish them."""
    from mednext_edge.serving.cohort_ray import run_on_ray

    settings.out.mkdir(parents=True, exist_ok=True)
    progress("cases on Ray", 0, len(cases))
    found = run_on_ray(address, open_session, settings, cases, settings.out / LEDGER) if cases else iter(())
    for number, result in enumerate(found, 1):
        progress("cases on Ray", number, len(cases))
        yield result


def _open(source: str, device: str | None, threads: int | None, cpus: int) -> Session:
    """The engine on a replica, which has so many processors."""
    from mednext_edge.cli.sources import open_source

    return open_source(source, device=device, threads=threads or cpus)


def _report(results: list[CaseResult], cases: int, source: str, out: Path, json: bool) -> None:
    done = [result for result in results if result.error is None]
    failed = [result for result in results if result.error is not None]
    skipped = cases - len(results)
    if json:
        emit_json(
            {
                "source": source,
                "cases": [result.model_dump(exclude={"error"}) for result in done],
                "failed": [result.model_dump(include={"case", "error"}) for result in failed],
                "skipped": skipped,
            }
        )
    else:
        say(f"{len(done)} cases written to {out}" + (f", {skipped} were there" if skipped else ""), "green")
    if failed:
        raise DataError(f"{len(failed)} of {cases} images could not be predicted; the messages above say why")
