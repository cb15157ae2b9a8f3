"""`mednext-edge bench --compare`: the two sides of a comparison, and what is said of its outcome."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mednext_edge.cli.console import Report, emit_json, say, show_table, show_warning
from mednext_edge.errors import NoisyMachineError, PerformanceGateError, UsageError

if TYPE_CHECKING:
    from mednext_edge.evaluation.duel import Duel
    from mednext_edge.evaluation.proxies import Proxies
    from mednext_edge.evaluation.regression import Rules
    from mednext_edge.evaluation.workers import Clock, Recipe, Side

STYLES = {"slower": "red", "passed": "green", "undecided": "yellow", "noisy": "yellow"}
ENGINE = "model.xml"


@dataclass(frozen=True)
class Request:
    """What is compared: `other` is a bundle, a checkpoint or a git revision; `recipe` makes bundles of checkpoints."""

    source: str
    other: str
    rules: Rules
    seconds: float
    recipe: Recipe | None = None
    patch: tuple[int, ...] | None = None
    device: str | None = None
    threads: int | None = None
    clock: Clock = "wall"


def compare(request: Request, progress: Report) -> tuple[Duel, dict[str, Proxies]]:
    """Build and export what has to be, and time both sides.

    Returns:
        The outcome, and the proxies of the sides that are OpenVINO bundles.

    Raises:
        UsageError: arguments that do not fit each other.
        MednextEdgeError: of a build, an export or an engine.
    """
    from mednext_edge.evaluation.duel import duel

    with _sides(request, progress) as (this, reference):
        found = duel(this, reference, request.rules, seconds=request.seconds, progress=progress)
        return found, {side.name: counted for side in (this, reference) if (counted := _proxies(side)) is not None}


def show(duel: Duel, proxies: dict[str, Proxies], json: bool) -> None:
    """Say what came of it, as a table or as JSON, and raise what the exit code stands for.

    Raises:
        PerformanceGateError: slower than the gate allows.
        NoisyMachineError: the machine allows no verdict.
    """
    if json:
        emit_json({"comparison": duel, "proxies": proxies})
    else:
        _tables(duel, proxies)
    if duel.status == "slower":
        raise PerformanceGateError(duel.words)
    if duel.status == "noisy":
        raise NoisyMachineError(f"{duel.words}. Give it more --seconds, fewer neighbours, or a larger --gate")
    if duel.status == "undecided":
        show_warning(duel.words)
    elif not json:
        say(duel.words, STYLES[duel.status])


def _tables(duel: Duel, proxies: dict[str, Proxies]) -> None:
    phases = {
        "reference against itself": duel.noise,
        "this against the reference": duel.compared,
        "again, in new processes": duel.confirmed,
    }
    rows = []
    for name, phase in phases.items():
        if phase is not None:
            ratio = phase.finding.ratio
            interval = f"{ratio.low:.3f} to {ratio.high:.3f}"
            rows.append((name, f"{ratio.value:.3f}", interval, len(phase.finding.logs), phase.finding.verdict))
    show_table(
        f"Time as a multiple of the reference's, patch {' x '.join(map(str, duel.patch))}",
        ["", "median", "interval", "pairs", "verdict"],
        rows,
    )
    if proxies:
        names = list(proxies)
        show_table(
            "Counted, not timed",
            ["", *names],
            [
                ("operators", *(proxies[name].executed for name in names)),
                ("reorders", *(proxies[name].reorders for name in names)),
                ("FakeQuantize", *(proxies[name].fake_quantize for name in names)),
                ("MB moved", *(f"{proxies[name].bytes_moved / 1e6:.1f}" for name in names)),
                ("engine MB", *(f"{proxies[name].engine_bytes / 1e6:.1f}" for name in names)),
            ],
        )


@contextlib.contextmanager
def _sides(request: Request, progress: Report) -> Iterator[tuple[Side, Side]]:
    """Both sides ready to open: the reference's revision built, checkpoints exported if asked for."""
    from mednext_edge.evaluation.revision import built
    from mednext_edge.evaluation.workers import Side, export_in_process

    with contextlib.ExitStack() as stack:
        this = Side("this", request.source, None, request.patch, request.device, request.threads, request.clock)
        if _is_source(request.other):
            reference = replace(this, name="reference", source=request.other)
        else:
            progress(f"build {request.other}", 0, 0)
            package = stack.enter_context(built(request.other, Path.cwd()))
            # A bundle is timed with the runtimes of both; a checkpoint also passes through both exports.
            reference = replace(this, name="reference", package=package)
        recipe, sides = request.recipe, (this, reference)
        if recipe is not None:
            if all(_is_bundle(side.source) for side in sides):
                raise UsageError("found --target, --precision or --calib; they turn a checkpoint into a bundle")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mednext-edge-")))
            progress("export", 0, 0)
            this, reference = (
                side if _is_bundle(side.source) else export_in_process(side, recipe, folder / side.name)
                for side in sides
            )
        yield this, reference


def _is_bundle(where: str) -> bool:
    from mednext_edge.bundle.manifest import MANIFEST

    return (Path(where) / MANIFEST).is_file()


def _is_source(where: str) -> bool:
    return where.startswith("demo:") or Path(where).exists()


def _proxies(side: Side) -> Proxies | None:
    from mednext_edge.evaluation.proxies import count
    from mednext_edge.runtime.engines import open
    from mednext_edge.runtime.openvino_session import OpenVinoSession

    if not (_is_bundle(side.source) and (file := Path(side.source) / ENGINE).is_file()):
        return None
    with open(side.source, device=side.device, threads=side.threads, patch=side.patch) as session:
        assert isinstance(session, OpenVinoSession)
        return count(session, file)
