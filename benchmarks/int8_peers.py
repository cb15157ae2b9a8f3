"""Our INT8 against NNCF's in OpenVINO on this machine's CPU: what each costs in accuracy, and what it gains in time.

    python benchmarks/int8_peers.py [CHECKPOINT] --calib DATA [--patch D H W] [--rounds N] [--json]

Five engines of one network: ours in INT8, our graph quantised by NNCF, the unmodified network quantised by NNCF with
its defaults, our graph in FP32, and the unmodified network in FP32. All calibrate on the same patches; errors are
those of the logits against the unmodified network in FP32, on patches of validation cases; times are interleaved.
Needs `pip install nncf`.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import openvino as ov
import typer

from mednext_edge.checkpoints import load
from mednext_edge.data.dataset import open_dataset
from mednext_edge.environment import environment
from mednext_edge.evaluation.latency import measure, ratio
from mednext_edge.export.depth_to_space import use_depth_to_space
from mednext_edge.export.graph import fix_size, to_onnx
from mednext_edge.fusion import fuse
from mednext_edge.quantize.calibration import CalibrationSet, default_count, draw
from mednext_edge.quantize.flavour import CPU
from mednext_edge.quantize.ptq import calibrate
from mednext_edge.runtime.openvino_session import OpenVinoSession
from mednext_edge.runtime.stock import stock_model

VALIDATION = 8
STOCK = "stock FP32"


@dataclass(frozen=True)
class Row:
    """One engine: seconds to quantise it, error of its logits, voxels with stock FP32's label, and its time."""

    engine: str
    seconds: float
    nmse: float
    cosine: float
    voxel_agreement: float
    p50_ms: float
    speedup: tuple[float, float, float]
    """Over stock FP32: the value, and its 95 % interval."""


def main(
    checkpoint: Annotated[str, typer.Argument(help="As of mednext-export.")] = "demo:brain-tissue",
    calib: Annotated[str, typer.Option(help="Images to calibrate and to measure errors on.")] = "demo:brain-tissue",
    patch: Annotated[str | None, typer.Option(metavar="'D H W'", help="Patch. [default: the checkpoint's]")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 9,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    model, data = load(checkpoint), open_dataset(calib)
    size = tuple(map(int, patch.split())) if patch else model.task.inference.patch
    calibration = draw(data.training, model.task, default_count(size), patch=size)
    validation = draw(data.validation, model.task, VALIDATION, patch=size, seed=1)
    deploy = fuse(model, optional=("parity",))
    graph = to_onnx(deploy, size, dynamic=True)

    def ours() -> ov.Model:
        return _converted(calibrate(fix_size(graph, size), deploy.net, calibration, CPU).apply(graph))

    def nncf_on_ours() -> ov.Model:
        import nncf

        fused = _converted(graph)
        fused.reshape([1, model.task.model.in_channels, *size])
        return _nncf(
            fused,
            calibration,
            preset=nncf.QuantizationPreset.PERFORMANCE,
            # In INT8 its residual sums are far off on processors without VNNI.
            ignored_scope=nncf.IgnoredScope(types=["Add"], validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )

    makers: dict[str, Callable[[], ov.Model]] = {
        "ours INT8": ours,
        "our graph, NNCF INT8": nncf_on_ours,
        "stock NNCF INT8": lambda: _nncf(stock_model(model.task, size, net=model.net), calibration),
        "ours FP32": lambda: _converted(graph),
        STOCK: lambda: stock_model(model.task, size, net=model.net),
    }
    seconds, sessions = {}, {}
    for name, make in makers.items():
        print(f"make {name}", file=sys.stderr)
        start = time.monotonic()
        made = make()
        seconds[name] = time.monotonic() - start
        sessions[name] = OpenVinoSession(made, model.task, "int8" if "INT8" in name else "fp32", patch=size)
    exact = [sessions[STOCK].run(x) for x in validation.patches]
    times = measure(sessions, size, rounds=rounds, warmup=1)
    rows = []
    for name, session in sessions.items():
        found = [session.run(x) for x in validation.patches]
        speedup = ratio(times[STOCK], times[name])
        rows.append(
            Row(
                engine=name,
                seconds=seconds[name],
                **_errors(exact, found),
                p50_ms=times[name].p50_ms,
                speedup=(speedup.value, speedup.low, speedup.high),
            )
        )
    if json_:
        result = {"checkpoint": checkpoint, "patch": size, "rounds": rounds, "rows": [asdict(row) for row in rows]}
        print(json.dumps({**result, "environment": environment().model_dump()}, indent=2))
        return
    for row in rows:
        print(
            f"{row.engine:22} {row.seconds:6.0f} s to make   NMSE {row.nmse:.5f}   labels {row.voxel_agreement:.4%}   "
            f"{row.p50_ms:7.0f} ms   {row.speedup[0]:.2f}x ({row.speedup[1]:.2f} to {row.speedup[2]:.2f})"
        )


def _converted(graph: Any) -> ov.Model:
    model = ov.convert_model(io.BytesIO(graph.SerializeToString()))
    use_depth_to_space(model)
    return model


def _nncf(model: ov.Model, calibration: CalibrationSet, **options: Any) -> ov.Model:
    import nncf

    dataset = nncf.Dataset(calibration.patches, lambda patch: [patch])
    with redirect_stdout(sys.stderr):
        return nncf.quantize(model, dataset, subset_size=len(calibration.patches), **options)


def _errors(exact: list[Any], found: list[Any]) -> dict[str, float]:
    x, y = (np.concatenate([part.ravel() for part in parts]).astype(np.float64) for parts in (exact, found))
    labels = np.mean([(a.argmax(1) == b.argmax(1)).mean() for a, b in zip(exact, found, strict=True)])
    return {
        "nmse": float(((x - y) ** 2).sum() / (x @ x)),
        "cosine": float(x @ y / np.sqrt((x @ x) * (y @ y))),
        "voxel_agreement": float(labels),
    }


if __name__ == "__main__":
    typer.run(main)
