"""One patch of the demo network through every engine: `pytest benchmarks` (pytest-benchmark).

Ratios between the rows of one run mean something; times from two runs do not. For a paired, interleaved
comparison use `mednext-edge bench BUNDLE --baseline`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import mednext_edge as mx
from mednext_edge.data.dataset import open_dataset
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.quantize.calibration import CalibrationSet, draw
from mednext_edge.runtime.session import Session

SIDE = int(os.environ.get("MEDNEXT_BENCH_PATCH", "64"))
PATCH = (SIDE,) * 3
ENGINES = [
    ("torch", "fp32"),
    ("stock openvino", "fp32"),
    ("onnx", "fp32"),
    ("onnx", "int8"),
    ("openvino", "fp32"),
    ("openvino", "int8"),
]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return mx.load("demo:brain-tissue")


@pytest.fixture(scope="module")
def calibration(model: LoadedModel) -> CalibrationSet:
    return draw(open_dataset("demo:brain-tissue").training, model.task, 2, patch=PATCH)


@pytest.fixture(params=ENGINES, ids=lambda pair: f"{pair[0]} {pair[1]}".replace(" ", "-"))
def session(
    request: pytest.FixtureRequest, model: LoadedModel, calibration: CalibrationSet, tmp_path: Path
) -> Iterator[Session]:
    target, precision = request.param
    if target == "torch":
        opened = mx.open(model)
    elif target == "stock openvino":
        from mednext_edge.runtime.stock import stock_session

        opened = stock_session(model.task, PATCH)
    else:
        given = calibration if precision == "int8" else None
        out = tmp_path / "bundle"
        mx.export(model, target=target, precision=precision, patch=PATCH, calibration=given, out=out)
        opened = mx.open(out)
    with opened:
        yield opened


def test_one_patch(benchmark: BenchmarkFixture, session: Session) -> None:
    x = np.random.default_rng(0).standard_normal((1, 1, *PATCH), dtype=np.float32)
    out = benchmark.pedantic(session.run, args=(x,), rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
    benchmark.extra_info.update(patch=PATCH, voxels=math.prod(PATCH), provider=session.provider)
    assert out.shape == (1, session.task.model.classes, *PATCH)
    assert np.isfinite(out).all()
