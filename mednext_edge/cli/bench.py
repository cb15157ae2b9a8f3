"""`mednext-edge bench`: how long one patch takes, next to the unmodified network in the same run."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from mednext_edge.cli.console import (
    DEVICE_OPTION,
    JSON_OPTION,
    NO_PROGRESS_OPTION,
    THREADS_OPTION,
    emit_json,
    say,
    show_table,
    track,
)
from mednext_edge.cli.sizes import parse_size

if TYPE_CHECKING:
    from mednext_edge.evaluation.report import Latency


def bench(
    source: Annotated[str, typer.Argument(metavar="BUNDLE|CHECKPOINT", help="What to time.")],
    baseline: Annotated[
        bool,
        typer.Option("--baseline", help="Also time the unmodified network, as OpenVINO converts it, in FP32."),
    ] = False,
    patch: Annotated[str | None, typer.Option(metavar="D H W", help="Patch to time. [default: the engine's]")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of each engine, in random order.")] = 30,
    device: Annotated[str | None, DEVICE_OPTION] = None,
    threads: Annotated[int | None, THREADS_OPTION] = None,
    json: Annotated[bool, JSON_OPTION] = False,
    no_progress: Annotated[bool, NO_PROGRESS_OPTION] = False,
) -> None:
    """Time one patch; every round runs each engine once, so that both see the same machine.

    Examples:

    - `mednext-edge bench brain-tissue.openvino-int8 --baseline`
    - `mednext-edge bench brain-tissue.openvino-int8 --patch 96 96 96 --rounds 100 --json`
    """
    from mednext_edge.cli.sources import open_source
    from mednext_edge.environment import environment
    from mednext_edge.evaluation.latency import measure, ratio

    size = parse_size(patch)
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
