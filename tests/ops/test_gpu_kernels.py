"""benchmarks/gpu_kernels.py without a GPU: its checks on the kernels built for the processor, rows on a fake clock."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from mednext_edge.errors import MednextEdgeError
from mednext_edge.models.config import MedNeXtConfig
from mednext_edge.ops import cuda_library
from mednext_edge.ops.cuda_library import CudaLibrary

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_kernels.py"
CPU = torch.device("cpu")


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_kernels", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_kernels"] = module
    spec.loader.exec_module(module)
    return module


gpu_kernels: Any = load()
every_operation = pytest.mark.parametrize("operation", gpu_kernels.OPERATIONS)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything takes 2 ms; memory figures are those of a device that holds nothing."""

    def graph(call: Any, device: torch.device) -> Any:
        call(5)
        return lambda: 2.0

    monkeypatch.setattr(gpu_kernels, "elapsed", lambda call, device: 2.0)
    monkeypatch.setattr(gpu_kernels, "graph", graph)
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    for name in ("max_memory_allocated", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 0)


@every_operation
@pytest.mark.parametrize("dtype", gpu_kernels.DTYPES, ids=str)
def test_our_kernels_are_right(kernels: CudaLibrary, operation: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for kernel, channels, size in ((3, 8, (3, 5, 4)), (5, 3, (1, 6, 2))):
        ratio = gpu_kernels.check(gpu_kernels.Case(operation, 2, channels, size, kernel, dtype), CPU)
        assert 0 <= ratio <= 1


@every_operation
@pytest.mark.parametrize("fault", ["scaled", "one voxel", "not written", "another every time"])
def test_a_fault_is_found(kernels: CudaLibrary, monkeypatch: pytest.MonkeyPatch, operation: str, fault: str) -> None:
    right = gpu_kernels.OPERATIONS[operation]
    calls = itertools.count()

    def wrong(*inputs: Tensor) -> tuple[Tensor, ...]:
        first, *rest = right.ours(*inputs)
        if fault == "scaled":
            first = first * 1.01
        elif fault == "one voxel":
            first[(0,) * first.dim()] += first.abs().max() / 10
        elif fault == "not written":
            first = torch.empty_like(first)
        else:
            first = first * (1 + 1e-3 * next(calls))
        return (first, *rest)

    broken = gpu_kernels.Operation(wrong, right.torchs, right.stride, right.transposed)
    monkeypatch.setitem(gpu_kernels.OPERATIONS, operation, broken)
    case = gpu_kernels.Case(operation, 1, 8, (3, 5, 4), 3, torch.float32)
    assert not gpu_kernels.check(case, CPU) <= 1
    with pytest.raises(MednextEdgeError, match=rf"1 of 1 results are wrong:\n{operation} k3 float32 \(1, 8, 3x5x4\)"):
        gpu_kernels.checked([case], CPU)


def test_cases_cover_every_kernel_type_and_alignment() -> None:
    cases = gpu_kernels.CHECKED
    assert {(c.operation, c.kernel, c.dtype) for c in cases} == set(
        itertools.product(gpu_kernels.OPERATIONS, (3, 5, 7, 9), gpu_kernels.DTYPES)
    )
    assert {c.channels % 8 == 0 for c in cases} == {True, False}
    assert {c.operation for c in gpu_kernels.TIMED} == set(gpu_kernels.OPERATIONS)


def test_bytes_that_must_be_moved() -> None:
    size = (4, 6, 8)
    elements = {
        name: gpu_kernels.Case(name, 2, 3, size, 3, torch.float16).elements / 6 for name in gpu_kernels.OPERATIONS
    }
    voxels = math.prod(size)
    expected = dict.fromkeys(elements, 2 * voxels) | {"stride 2": voxels * 9 / 8, "transposed": voxels + 7 * 11 * 15}
    assert elements == expected


@every_operation
def test_a_row(kernels: CudaLibrary, clock: None, operation: str) -> None:
    case = gpu_kernels.Case(operation, 1, 8, (4, 4, 4), 3, torch.float16)
    row = json.loads(json.dumps(gpu_kernels.measure(case, CPU, cache=10**6, bandwidth=1e-3)))
    assert row["microseconds"] == dict.fromkeys(("ours", "torch contiguous", "torch channels-last"), 2000)
    assert row["times_faster_than_best_torch"] == 1
    # 2 bytes an element in 2 ms, of 1e6 bytes/s.
    assert row["percent_of_copy_bandwidth"] == round(100 * case.elements * 2 / 0.002 / 1e6, 1)
    assert (row["operation"], row["dtype"], row["inputs_fit_in_cache"]) == (operation, "float16", True)


@pytest.mark.parametrize("training", [False, True])
def test_a_network(kernels: CudaLibrary, clock: None, monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    def tiny(variant: str, kernel: int) -> MedNeXtConfig:
        return MedNeXtConfig(
            channels=4,
            blocks=(1,) * 3,
            expansion=(2,) * 3,
            down_expansion=(2,),
            down_grn=(False,),
            encoder_kernel=kernel,
        )

    monkeypatch.setattr(gpu_kernels, "mednext_config", tiny)
    row = gpu_kernels.network("S", 3, 4, 1, training, CPU)
    assert row["milliseconds"] == dict.fromkeys(("ours", "torch contiguous", "torch channels-last"), 2.0)
    assert row["network"].endswith("training step" if training else "inference")


def test_a_network_that_does_not_fit_is_left_out(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB.")

    monkeypatch.setattr(gpu_kernels, "prepared", full)
    assert gpu_kernels.network("B", 5, 128, 2, True, CPU)["left_out"] == "CUDA out of memory"


def program() -> Any:
    import typer

    app = typer.Typer()
    app.command()(gpu_kernels.main)
    return app


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(program(), ["--out", str(tmp_path)])
    assert done.exit_code == 5
    assert "no CUDA device" in done.stderr
    assert not list(tmp_path.iterdir())


def test_whole(kernels: CudaLibrary, clock: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The result of a run on a device that is faked down to its name."""
    about = SimpleNamespace(name="NVIDIA Fake 1", L2_cache_size=10**6, major=9, minor=0, multi_processor_count=4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(gpu_kernels, "torch_device", lambda: CPU)
    case = gpu_kernels.Case("forward", 1, 8, (3, 4, 5), 3, torch.float16)
    for name in ("CHECKED", "TIMED"):
        monkeypatch.setattr(gpu_kernels, name, [case])
    monkeypatch.setattr(gpu_kernels, "network", lambda *_: {"network": "none"})
    done = CliRunner().invoke(program(), ["--out", str(tmp_path / "results"), "--json"])
    assert done.exit_code == 0, done.stderr
    (file,) = (tmp_path / "results").iterdir()
    assert file.name.startswith("nvidia-fake-1-20") and file.suffix == ".json"
    result = json.loads(done.stdout)
    assert result == json.loads(file.read_text())
    assert result["checks"]["results"] == len(result["kernels"]) == 1
    assert result["capability"] == "9.0"
    assert cuda_library.library().path.name not in file.read_text()


@pytest.mark.skipif(not torch.cuda.is_available() or not cuda_library.available(), reason="no GPU, or no CUDA kernels")
def test_on_a_gpu() -> None:
    assert gpu_kernels.checked(gpu_kernels.CHECKED[::7], torch.device("cuda"))["worst_error_over_allowed"] <= 1


def test_a_graph_repeats_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many calls as fill a round, on inputs that change; the time is that of one call."""
    called: list[int] = []

    def capture(step: Any, device: torch.device) -> Any:
        return step, None

    def elapsed(call: Any, device: torch.device) -> float:
        before = len(called)
        call()
        return 0.5 * (len(called) - before)

    monkeypatch.setattr(gpu_kernels, "capture", capture)
    monkeypatch.setattr(gpu_kernels, "elapsed", elapsed)
    run = gpu_kernels.graph(called.append, CPU)
    called.clear()
    assert run() == 0.5
    assert called == [0, 1, 2, 3]
