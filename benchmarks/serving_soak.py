"""Many small sessions through `mednext-edge serve` on this machine: its memory, and whether everyone gets their labels.

    python benchmarks/serving_soak.py mrd BUNDLE [--sessions 500] [--at-once 4] [--json]
    python benchmarks/serving_soak.py dicom BUNDLE [--series 200] [--at-once 4] [--json]

`mrd` sends random volumes as the ismrmrd package does and compares the labels with those that came before, when nothing
else was sent. `dicom` sends random series by dcmtk's storescu under fresh UIDs, and takes the segmentation objects that
come back. An answer is right, wrong (of other labels), lost, doubled (two of them), or failed (refused, or broken off).
The exit code is 1 unless all are right. Memory is the service's resident set.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.serving.dicom import CALLED, TITLE, Archive, Modality
from benchmarks.serving.mrd import MrdClient
from benchmarks.serving.outcome import LEAST, RIGHT, ServingSoak, soak
from benchmarks.serving.process import Service, serving
from mednext_edge.environment import environment

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)
BUNDLE = typer.Argument(help="Folder of a bundle whose network takes one channel.")
AT_ONCE = typer.Option(min=1, max=8, help="Clients at one time.")
AS_JSON = typer.Option("--json", help="One JSON document on stdout.")


def tell(done: int, total: int) -> None:
    print(f"\r{done} of {total} answered", end="" if done < total else "\n", file=sys.stderr)


@contextmanager
def started(kind: str, bundle: Path, *options: object) -> Iterator[Service]:
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), kind, bundle, *options) as service:
        yield service


@app.command()
def mrd(
    bundle: Annotated[Path, BUNDLE],
    sessions: Annotated[int, typer.Option(min=LEAST)] = 500,
    at_once: Annotated[int, AT_ONCE] = 1,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Sessions of the MRD server."""
    with started("mrd", bundle) as service:
        client, start = MrdClient(service.port), time.perf_counter()
        found = soak(client.send, sessions, at_once, service.resident_mb, tell)
        show(found, start, as_json, service, kind="mrd", bundle=bundle.name, at_once=at_once)


@app.command()
def dicom(
    bundle: Annotated[Path, BUNDLE],
    series: Annotated[int, typer.Option(min=LEAST)] = 200,
    at_once: Annotated[int, AT_ONCE] = 4,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Series of the DICOM node."""
    with tempfile.TemporaryDirectory() as spool, closing(Archive()) as archive:
        options = ("--spool", spool, "--ae-title", CALLED, "--send-to", f"{TITLE}@127.0.0.1:{archive.port}")
        with started("dicom", bundle, *options, "--quiet", 1) as service:
            modality, start = Modality(service.port, archive), time.perf_counter()
            found = soak(modality.send, series, at_once, service.resident_mb, tell)
            more = {"kind": "dicom", "bundle": bundle.name, "at_once": at_once, "sent_again": archive.repeated}
            show(found, start, as_json, service, **more)


def show(found: ServingSoak, start: float, as_json: bool, service: Service, **more: Any) -> None:
    seconds = time.perf_counter() - start
    figures = {**asdict(found), "growth_mb": found.growth_mb, "complaints": service.complaints(), "seconds": seconds}
    report = {**more, **figures}
    if as_json:
        print(json.dumps({**report, "environment": environment().model_dump()}, indent=2))
    else:
        for key, value in report.items():
            print(f"{key}: {value}")
    if sum(found.outcomes.values()) != found.outcomes[RIGHT]:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
