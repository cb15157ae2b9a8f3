"""What the suites share: `pytest benchmarks` (pytest-benchmark), `--benchmark-json FILE` for all figures.

Ratios between the rows of one run mean something; times from two runs do not. For a paired comparison use `mednext-edge
bench --compare`, for a table in turns `benchmarks/peers_table.py`. MEDNEXT_BENCH_PATCH is the side of the patch (64).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).parent))

from peers.engines import session as open_session
from peers.work import gemm_peak, gflop

from mednext_edge.environment import environment
from mednext_edge.errors import ExportError, TargetUnavailableError
from mednext_edge.evaluation.memory import PeakMemory
from mednext_edge.models.loaded import LoadedModel

SIDE = int(os.environ.get("MEDNEXT_BENCH_PATCH", "64"))
PATCH = (SIDE,) * 3

Timed = Callable[[str, LoadedModel], None]


@pytest.fixture(scope="session")
def gemm() -> float:
    """GFLOP/s of a float32 matrix product on this machine, in this run."""
    return gemm_peak()


@pytest.fixture
def timed(benchmark: BenchmarkFixture, gemm: float) -> Timed:
    """Times a model in an engine, and notes how much of the machine that is."""

    def run(engine: str, model: LoadedModel) -> None:
        work = gflop(model)
        x = np.random.default_rng(0).standard_normal(
            (1, model.task.model.in_channels, *model.task.inference.patch), dtype=np.float32
        )
        try:
            opened = open_session(engine, model)
        except TargetUnavailableError as error:
            pytest.skip(str(error))
        except ExportError as error:
            if "to quantise" not in str(error):
                raise
            pytest.skip(str(error))
        with opened, PeakMemory() as memory:
            out = benchmark.pedantic(opened.run, args=(x,), rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
        assert np.isfinite(out).all()
        times = np.array(benchmark.stats.stats.data)  # type: ignore[union-attr]
        rate = work / float(np.median(times))
        benchmark.extra_info.update(
            patch=model.task.inference.patch,
            gflop=work,
            gflops=rate,
            gemm_peak_gflops=gemm,
            percent_of_gemm_peak=100 * rate / gemm,
            single_stream_p90_ms=1e3 * float(np.percentile(times, 90)),
            offline_patches_per_s=1 / float(times.mean()),
            peak_memory_mb_of_process=memory.mb,
            provider=opened.provider,
            packages=environment().packages,
        )

    return run
