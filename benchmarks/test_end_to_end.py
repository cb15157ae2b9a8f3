"""From an image in memory to its labels: the demo network on the demo's own volume, in each of its precisions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import mednext_edge as mx
from mednext_edge.data.dataset import open_dataset
from mednext_edge.environment import environment
from mednext_edge.evaluation.memory import PeakMemory
from mednext_edge.runtime.predictor import Predictor

DEMO = "demo:brain-tissue"


@pytest.mark.parametrize("precision", ["torch", "fp32", "int8"])
def test_volume(benchmark: BenchmarkFixture, precision: str, tmp_path: Path) -> None:
    model, data = mx.load(DEMO), open_dataset(DEMO)
    source: object = model
    if precision != "torch":
        given = data if precision == "int8" else None
        source = mx.export(model, target="openvino", precision=precision, calibration=given, out=tmp_path / "bundle")
    image = data.validation[0].image()
    with mx.open(source) as session, PeakMemory() as memory:  # type: ignore[arg-type]
        predict = Predictor(session).predict
        labels = benchmark.pedantic(predict, args=(image,), rounds=3, warmup_rounds=1)  # type: ignore[no-untyped-call]
        benchmark.extra_info.update(
            voxels=int(np.prod(image.array.shape[1:])),
            peak_memory_mb_of_process=memory.mb,
            provider=session.provider,
            packages=environment().packages,
        )
    assert labels.shape == image.array.shape[1:]
