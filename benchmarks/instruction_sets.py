"""The native engine beside OpenVINO with the instruction sets of older and smaller processors, on this one.

    python benchmarks/instruction_sets.py NATIVE_BUNDLE OPENVINO_BUNDLE [--sets A,B] [--rounds N] --out FILE

Both bundles are of one network in one precision. For each set that this processor has, both engines are held back to
it: ours by MEDNEXT_CPU_ISA, OpenVINO by ONEDNN_MAX_CPU_ISA of the oneDNN in it. All run in processes of their own and
are timed in turns, in random order. A processor that has nothing more than such a set has other caches and clocks too:
ratios tell more than times.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from peers.instruction_sets import SETS, InstructionSet, hold_back, sets_here

from mednext_edge.environment import environment
from mednext_edge.evaluation.ratios import Ratio, median_ratio
from mednext_edge.evaluation.workers import Clock, Side, Worker


@dataclass(frozen=True)
class Row:
    """Milliseconds of one patch (median), and how many times as long OpenVINO takes."""

    instruction_set: InstructionSet
    native: str
    native_ms: float
    openvino_ms: float
    openvino_over_native: Ratio


def main(
    native: Annotated[Path, typer.Argument(help="Bundle of the native engine.")],
    openvino: Annotated[Path, typer.Argument(help="Bundle of OpenVINO, of the same network and precision.")],
    out: Annotated[Path, typer.Option(help="JSON.")],
    sets: Annotated[
        str, typer.Option(metavar="A,B", help="Ours by name; OpenVINO's bfloat16 takes avx512_bf16 and amx alone.")
    ] = ",".join(each.ours for each in SETS),
    rounds: Annotated[int, typer.Option(min=1)] = 15,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    clock: Annotated[str, typer.Option(help="wall, or cpu: what the threads of the process computed.")] = "wall",
) -> None:
    try:
        here = sets_here(set(sets.split(",")))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--sets") from error
    measured: Clock = "cpu" if clock == "cpu" else "wall"
    with ExitStack() as stack:
        workers: list[Worker] = []
        for each in here:
            hold_back(each)
            for name, bundle in (("native", native), ("openvino", openvino)):
                side = Side(f"{name}, {each.ours}", str(bundle), threads=threads, clock=measured)
                workers.append(stack.enter_context(Worker(side)))
                workers[-1].time()
        times = np.zeros((len(workers), rounds))
        generator = np.random.default_rng(0)
        for i in range(rounds):
            for j in generator.permutation(len(workers)):
                times[j, i] = workers[j].time()
        patch, engines = workers[0].patch, [worker.engine for worker in workers]
    rows = []
    for i, each in enumerate(here):
        ours, other = times[2 * i], times[2 * i + 1]
        ratio = median_ratio(np.log(other) - np.log(ours))
        rows.append(Row(each, engines[2 * i], float(np.median(ours)), float(np.median(other)), ratio))
        typer.echo(
            f"{each.ours:12} native {rows[-1].native_ms:7.1f} ms  {each.onednn:16} OpenVINO "
            f"{rows[-1].openvino_ms:7.1f} ms  {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        )
    whole = {
        "patch": patch,
        "rounds": rounds,
        "threads": threads,
        "clock": measured,
        "rows": [asdict(row) for row in rows],
        "environment": environment().model_dump(),
    }
    out.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
