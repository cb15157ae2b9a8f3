"""Every network in every engine on this machine's CPU, in one table and one plot.

    python benchmarks/peers_table.py [--networks A,B] [--engines A,B] [--patch 'D H W'] [--rounds N] --out FOLDER

Each engine of a network is prepared (converted, calibrated) in one process, and read from its file and timed in
another, so that its peak memory is its own; the processes of one network are timed in turns, in random order, so that
all see the same machine. `--engines-in FOLDER` keeps what is prepared for the next call. In MLPerf's terms `p90_ms` is
single stream (the 90th percentile of one patch after the other) and `patches_per_s` is offline (throughput).
`peak_share` is of a matrix product in the same precision in the same run. `--instruction-set` holds PyTorch's oneDNN,
OpenVINO and the native engine back to what a processor without the newest units has; ONNX Runtime it does not reach.
What cannot run here is listed with the reason. INT8 is calibrated on noise; nothing here speaks of accuracy. `pip
install mednext-edge[peers]` brings them all.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from peers.engines import ENGINES
from peers.instruction_sets import hold_back, sets_here
from peers.networks import NETWORKS, network
from peers.plot import plot
from peers.work import PRECISIONS, gemm_peak, gflop

from mednext_edge.environment import environment
from mednext_edge.errors import MednextEdgeError
from mednext_edge.evaluation.ratios import median_ratio
from mednext_edge.evaluation.workers import Channel

WORKER = Path(__file__).parent / "peers" / "worker.py"
REFERENCE = "stock openvino fp32"
# torch.compile takes minutes to compile a network of this depth.
DEFAULT_ENGINES = tuple(name for name in ENGINES if name != "torch.compile")


@dataclass(frozen=True)
class Row:
    """One engine of one network. `speedup` is over stock OpenVINO FP32: the value and its 95 % interval."""

    network: str
    engine: str
    ours: bool
    provider: str
    p50_ms: float
    p90_ms: float
    patches_per_s: float
    gflops: float
    peak_share: float
    peak_mb: float
    speedup: tuple[float, float, float] | None


def main(
    out: Annotated[Path, typer.Option(help="Folder for table.json and table.png.")],
    networks: Annotated[str | None, typer.Option(metavar="A,B", help="All that take such a patch by default.")] = None,
    engines: Annotated[str, typer.Option(metavar="A,B")] = ",".join(DEFAULT_ENGINES),
    patch: Annotated[str, typer.Option(metavar="'D H W'")] = "128 128 128",
    rounds: Annotated[int, typer.Option(min=1)] = 9,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    engines_in: Annotated[Path | None, typer.Option(help="Folder that keeps what is prepared.")] = None,
    instruction_set: Annotated[
        str | None, typer.Option(metavar="SET", help="Hold all engines back to it, such as avx512_bf16.")
    ] = None,
) -> None:
    if instruction_set is not None:
        _hold_back(instruction_set)
    size = tuple(map(int, patch.split()))
    peaks: dict[str, dict[str, float]] = {}
    rows: list[Row] = []
    missing: dict[str, str] = {}
    out.mkdir(parents=True, exist_ok=True)
    taken = [name for name in NETWORKS if NETWORKS[name].dims == len(size)]
    for name in networks.split(",") if networks else taken:
        with contextlib.ExitStack() as stack:
            kept = engines_in or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            files = kept / f"{name}-{'x'.join(map(str, size))}"
            found, lacking, peak = time_network(name, engines.split(","), size, rounds, threads, files)
        rows += found
        missing |= lacking
        peaks |= {name: peak} if peak else {}
        whole = {
            "patch": size,
            "rounds": rounds,
            "threads": threads,
            "instruction_set": instruction_set,
            "gemm_peak_gflops": peaks,
            "rows": [asdict(row) for row in rows],
            "missing": missing,
            "environment": environment().model_dump(),
        }
        (out / "table.json").write_text(json.dumps(whole, indent=1) + "\n")
        if rows:
            plot(rows, out / "table.png", f"patch {' x '.join(map(str, size))}, {rounds} rounds")


def time_network(
    name: str,
    engines: list[str],
    size: tuple[int, ...],
    rounds: int,
    threads: int | None,
    files: Path,
) -> tuple[list[Row], dict[str, str], dict[str, float]]:
    """Its rows, why others are missing, and the GFLOP/s of matrix products between them: the median over the rounds."""
    missing: dict[str, str] = {}
    try:
        work = gflop(network(name, size))
    except (MednextEdgeError, ValueError, AssertionError) as error:  # peers refuse sizes in their own ways
        return [], {name: str(error)}, {}
    requests = {}
    for engine in engines:  # all of them before the first is opened: conversion takes more memory than inference
        folder = files / engine.replace(" ", "-")
        requests[engine] = {
            "network": name,
            "engine": engine,
            "patch": size,
            "threads": threads,
            "prepare": False,
            "folder": str(folder),
        }
        try:
            if not folder.exists():
                _prepare(requests[engine], folder)
        except MednextEdgeError as error:
            missing[f"{name}, {engine}"] = str(error)
        typer.echo(f"{name}, {engine}: {missing.get(f'{name}, {engine}', 'prepared')}", err=True)
    with contextlib.ExitStack() as stack:
        channels: dict[str, Channel] = {}
        providers: dict[str, str] = {}
        for engine in engines:
            if f"{name}, {engine}" in missing:
                continue
            try:
                channel = Channel(f"{name}, {engine}", WORKER)
                stack.callback(channel.close)
                providers[engine] = str(channel.ask(requests[engine])["provider"])
                channel.ask({"calls": 1})
                channels[engine] = channel
            except MednextEdgeError as error:
                missing[f"{name}, {engine}"] = str(error)
            typer.echo(f"{name}, {engine}: {missing.get(f'{name}, {engine}', 'ready')}", err=True)
        taken: dict[str, list[float]] = {engine: [] for engine in channels}
        generator = np.random.default_rng(0)
        products: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
        for _ in range(rounds):
            for precision, found in products.items():  # in turns too: the clocks of a shared machine come and go
                found.append(gemm_peak(precision, threads))
            for engine in generator.permutation(list(channels)):
                taken[engine].append(float(channels[engine].ask({"calls": 1})["wall"]))
        memory = {engine: _peak_mb(channel.pid) for engine, channel in channels.items()}
    rows = []
    peaks = {precision: float(np.median(found)) for precision, found in products.items()}
    for engine, times in taken.items():
        p50, p90 = (float(p) for p in np.percentile(times, [50, 90]))
        speedup = None
        if REFERENCE in taken:
            ratio = median_ratio(np.log(taken[REFERENCE]) - np.log(times))
            speedup = (ratio.value, ratio.low, ratio.high)
        rate = work / (p50 / 1e3)
        row = Row(
            network=name,
            engine=engine,
            ours=ENGINES[engine].ours,
            provider=providers[engine],
            p50_ms=p50,
            p90_ms=p90,
            patches_per_s=1e3 / float(np.mean(times)),
            gflops=rate,
            peak_share=rate / peaks[ENGINES[engine].precision.split("-")[0]],
            peak_mb=memory[engine],
            speedup=speedup,
        )
        rows.append(row)
        typer.echo(
            f"{name:20} {engine:20} {p50:8.1f} ms {rate:7.1f} GFLOP/s {memory[engine]:7.0f} MB {speedup}", err=True
        )
    return rows, missing, peaks


def _hold_back(name: str) -> None:
    try:
        here = sets_here({name})
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--instruction-set") from error
    if not here:
        raise typer.BadParameter(f"this processor has no {name}", param_hint="--instruction-set")
    hold_back(here[0])


def _prepare(request: dict[str, Any], folder: Path) -> None:
    """Under a temporary name, so that what was broken off is not taken for an engine."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        unfinished = Path(scratch) / folder.name
        channel = Channel(folder.name, WORKER)
        try:
            channel.ask({**request, "prepare": True, "folder": str(unfinished)})
        finally:
            channel.close()
        unfinished.rename(folder)


def _peak_mb(pid: int) -> float:
    """Most memory that a process has held so far, in 1e6 bytes: compilation included."""
    status = Path(f"/proc/{pid}/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    return float(psutil.Process(pid).memory_info().rss) / 1e6


if __name__ == "__main__":
    typer.run(main)
