"""Labels out of the graph in place of logits: what it would save of one patch that is a whole volume, with OpenVINO.

    python benchmarks/labels_out.py BUNDLE [--patch D H W] [--rounds N] [--threads N] [--clock wall|cpu] --out FILE

A sliding window averages the scores of its patches and needs them; only where one patch is the whole volume could the
graph answer with labels. Timed in turns, in random order, in one process: the engine as it is; the engine and the best
class of its answer by PyTorch; and the engine whose graph ends in the best class, in uint8, once as OpenVINO's TopK and
once as a chain of comparisons, which the plugin can make one kernel of.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import openvino as ov
import torch
import typer
from openvino import opset13 as ops

from mednext_edge.bundle import verify
from mednext_edge.cli.sizes import parse_size
from mednext_edge.environment import environment
from mednext_edge.errors import DataError, UsageError
from mednext_edge.evaluation.ratios import Ratio, median_ratio
from mednext_edge.runtime.openvino_session import HINTS

LOGITS, HOST, ARGMAX = "logits", "logits, then class after class", "logits, then argmax by PyTorch"
WARMUP = 3


@dataclass(frozen=True)
class Row:
    """One way to labels: its median, how many times as long it takes as class after class, and every round."""

    name: str
    median_ms: float
    over_class_after_class: Ratio | None
    equal_labels: float | None
    rounds_ms: tuple[float, ...]


def topk(logits: ov.Output) -> ov.Node:
    """[1, classes, *patch] -> [1, *patch] uint8 by OpenVINO's own operator; the first of equal classes."""
    best = ops.topk(logits, np.int32(1), 1, "max", "index", index_element_type="i32")
    return ops.convert(ops.squeeze(best.output(1), np.int32([1])), "u8")


def comparisons(logits: ov.Output) -> ov.Node:
    """The same, class after class."""
    count = logits.get_partial_shape()[1].get_length()
    parts = ops.split(logits, np.int32(1), count).outputs()
    best, label = parts[0], ops.constant(np.float32(0)).output(0)
    for index in range(1, count):
        above = ops.greater(parts[index], best)
        label = ops.select(above, ops.constant(np.float32(index)), label).output(0)
        best = ops.maximum(best, parts[index]).output(0)
    return ops.convert(ops.squeeze(label, np.int32([1])), "u8")


def compared(logits: np.ndarray) -> np.ndarray:
    """[1, classes, *patch] -> [1, *patch] uint8, as `data.recipe.restore` does it; the first of equal classes."""
    best, label = logits[:, 0].copy(), np.zeros_like(logits[:, 0], np.uint8)
    for value in range(1, logits.shape[1]):
        label[logits[:, value] > best] = value
        np.maximum(best, logits[:, value], out=best)
    return label


FORMS: dict[str, Callable[[ov.Output], ov.Node]] = {"labels by TopK": topk, "labels by comparisons": comparisons}


def main(
    bundle: Annotated[Path, typer.Argument(help="Of OpenVINO, of a network for segmentation.")],
    out: Annotated[Path, typer.Option(help="JSON.")],
    patch: Annotated[str | None, typer.Option(metavar="D H W")] = None,
    rounds: Annotated[int, typer.Option(min=4)] = 40,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    clock: Annotated[str, typer.Option(help="wall, or cpu: what the threads of the process computed.")] = "wall",
) -> None:
    now = time.process_time if clock == "cpu" else time.perf_counter
    manifest = verify(bundle)
    if manifest.target != "openvino" or manifest.model.kind != "segmentation" or manifest.model.classes < 2:
        raise UsageError(f"found {bundle} for {manifest.target}; expected a segmentation of two or more with openvino")
    core, size = ov.Core(), parse_size(patch) or manifest.input.patch
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[manifest.precision]}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads

    def engine(form: Callable[[ov.Output], ov.Node] | None) -> ov.InferRequest:
        model = core.read_model(bundle / manifest.engine.file)
        model.reshape([1, manifest.model.in_channels, *size])
        if form is not None:
            source = model.outputs[0].get_node().input_value(0)
            model = ov.Model([ops.result(form(source))], model.get_parameters(), "labels")
        return core.compile_model(model, "CPU", options).create_infer_request()

    requests = {LOGITS: engine(None), **{name: engine(form) for name, form in FORMS.items()}}
    requests[HOST] = requests[ARGMAX] = requests[LOGITS]
    if threads is not None:
        torch.set_num_threads(threads)

    def labels(name: str, x: np.ndarray) -> np.ndarray:
        found = requests[name].infer([x])[0]
        if name == ARGMAX:
            return torch.from_numpy(found).argmax(1).to(torch.uint8).numpy()
        return compared(found) if name == HOST else found

    names = list(requests)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((1, manifest.model.in_channels, *size), dtype=np.float32)
    for name in names * WARMUP:
        labels(name, x)
    taken = np.zeros((len(names), rounds))
    for i in range(rounds):
        for j in generator.permutation(len(names)):
            start = now()
            labels(names[j], x)
            taken[j, i] = (now() - start) * 1e3
        typer.echo(f"{i + 1} of {rounds}: {dict(zip(names, taken[:, i].round(1), strict=True))}", err=True)
    expected, host = labels(HOST, x).copy(), np.log(taken[names.index(HOST)])
    rows = []
    for name, times in zip(names, taken, strict=True):
        equal = None if name == LOGITS else float((labels(name, x) == expected).mean())
        if equal is not None and equal < 0.9999:
            raise DataError(f"{name} are those of the logits on {equal:.4%} of the voxels; expected 99.99 %")
        ratio = None if name == HOST else median_ratio(np.log(times) - host)
        rows.append(asdict(Row(name, float(np.median(times)), ratio, equal, tuple(times))))
    found = {
        "network": f"{manifest.model.family} {manifest.model.variant} k{manifest.model.kernel_size}",
        "precision": manifest.precision,
        "patch": size,
        "rounds": rounds,
        "threads": threads,
        "clock": clock,
        "rows": rows,
        "environment": environment().model_dump(),
    }
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
