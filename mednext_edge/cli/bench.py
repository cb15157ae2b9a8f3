"""`mednext-edge bench`: how long one patch takes, next to the unmodified network or to another revision."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from mednext_edge.cli.console import (
    DEVICE_OPTION,
    JSON_OPTION,
    NO_PROGRESS_OPTION,
    THREADS_OPTION,
    emit_json,
    one_of,
    say,
    show_table,
    track,
)
from mednext_edge.cli.export import PRECISIONS, TARGETS
from mednext_edge.cli.sizes import parse_size
from mednext_edge.errors import UsageError

if TYPE_CHECKING:
    from mednext_edge.evaluation.report import Latency
    from mednext_edge.evaluation.workers import Clock

CLOCKS = ("wall", "cpu")
COMPARISON = "Comparison (--compare)"


def bench(
    source: Annotated[str, typer.Argument(metavar="BUNDLE|CHECKPOINT", help="What to time.")],
    baseline: Annotated[
        bool,
        typer.Option("--baseline", help="Also time the unmodified network, as OpenVINO converts it, in FP32."),
    ] = False,
    patch: Annotated[str | None, typer.Option(metavar="D H W", help="Patch to time. [default: the engine's]")] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Timed calls of each engine, in random order; not with --compare.")
    ] = 30,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="REV_OR_BUNDLE",
            help="Is this slower than that bundle or checkpoint, or than itself with the package of a git revision "
            "(in a clone; built for the comparison)?",
            rich_help_panel=COMPARISON,
        ),
    ] = None,
    gate: Annotated[
        float,
        typer.Option(
            min=0.001,
            max=0.999,
            help="Slow-down that passes, as a fraction; one that is surely larger ends with exit code 4.",
            rich_help_panel=COMPARISON,
        ),
    ] = 0.05,
    seconds: Annotated[
        float,
        typer.Option(min=1, help="Longest time to take pairs for; it ends when sure.", rich_help_panel=COMPARISON),
    ] = 300.0,
    clock: Annotated[
        str,
        typer.Option(
            metavar="|".join(CLOCKS),
            help="cpu counts what the process computed, not what it waited: it hardly sees neighbours. Use it with "
            "--threads 1 on machines too noisy for wall.",
            callback=one_of("clock", CLOCKS),
            rich_help_panel=COMPARISON,
        ),
    ] = "wall",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw every pair as PNG.", rich_help_panel=COMPARISON)
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(TARGETS),
            help="Export checkpoints first, each with its own package. [default: run them in PyTorch]",
            callback=one_of("target", TARGETS),
            rich_help_panel=COMPARISON,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(PRECISIONS),
            help="Of that export. [default: the target's first]",
            callback=one_of("precision", PRECISIONS),
            rich_help_panel=COMPARISON,
        ),
    ] = None,
    calib: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Images that INT8 of that export needs.", rich_help_panel=COMPARISON),
    ] = None,
    device: Annotated[str | None, DEVICE_OPTION] = None,
    threads: Annotated[int | None, THREADS_OPTION] = None,
    json: Annotated[bool, JSON_OPTION] = False,
    no_progress: Annotated[bool, NO_PROGRESS_OPTION] = False,
) -> None:
    """Time one patch; every round runs each engine once, so that both see the same machine.

    With `--compare` each side has a process of its own. First the reference runs against itself, so that a machine
    too noisy for a verdict says so (exit code 1); then pairs are taken until it is sure whether this is slower than
    the gate allows, and an alarm is raised only when new processes confirm it. Undecided in time is a warning.

    Examples:

    - `mednext-edge bench brain-tissue.openvino-int8 --baseline`
    - `mednext-edge bench brain-tissue.openvino-int8 --patch 96 96 96 --rounds 100 --json`
    - `mednext-edge bench new.openvino-int8 --compare old.openvino-int8 --gate 0.05 --plot pairs.png`
    - `mednext-edge bench demo:brain-tissue --compare main --target openvino --patch 64 64 64`
    """
    size = parse_size(patch)
    if compare is not None:
        from mednext_edge.cli.compare import Request, show
        from mednext_edge.cli.compare import compare as run
        from mednext_edge.evaluation.regression import Rules
        from mednext_edge.evaluation.workers import Recipe

        if baseline:
            raise UsageError("found --baseline and --compare; give one of them")
        if target is None and (precision or calib):
            raise UsageError("found --precision or --calib without --target, whose export they belong to")
        recipe = None if target is None else Recipe(target, precision, calib)
        request = Request(
            source, compare, Rules(gate=gate), seconds, recipe, size, device, threads, cast("Clock", clock)
        )
        with track(not no_progress) as progress:
            duel, proxies = run(request, progress)
        if plot is not None:
            from mednext_edge.evaluation.duel_plot import plot as draw

            draw(duel, plot)
        show(duel, proxies, json)
        return
    if plot is not None or target is not None:
        raise UsageError("found --plot or --target without --compare, which they belong to")
    from mednext_edge.cli.sources import open_source
    from mednext_edge.environment import environment
    from mednext_edge.evaluation.latency import measure, ratio

    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(track(not no_progress))
        session = stack.enter_context(open_source(source, device=device, threads=threads, patch=size))
        size = size or session.patch or session.task.inference.patch
        sessions = {"this": session}
        if baseline:
            from mednext_edge.runtime.stock import stock_session

            progress("convert the baseline", 0, 0)
            sessions["baseline"] = stack.enter_context(stock_session(session.task, size, threads=threads))
        times = measure(sessions, size, rounds=rounds, progress=progress)
        engines = {name: f"{one.provider}, {one.precision}" for name, one in sessions.items()}
    faster = ratio(times["baseline"], times["this"]) if baseline else None
    if json:
        emit_json(
            {"source": source, "engines": engines, "latency": times, "speedup": faster, "environment": environment()}
        )
        return
    show_table(
        f"One patch of {' x '.join(map(str, size))}, {rounds} rounds",
        ["", "engine", "median", "p90", "p99", "first call"],
        [(name, engines[name], *_times(latency)) for name, latency in times.items()],
    )
    if faster is not None:
        say(f"{faster.value:.2f} times as fast (95 % interval {faster.low:.2f} to {faster.high:.2f})", "green")


def _times(latency: Latency) -> list[str]:
    return [f"{ms:.1f} ms" for ms in (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.first_ms)]
