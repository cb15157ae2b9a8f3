"""benchmarks/gpu_kernels.py without a GPU: its checks on the kernels built for the processor, rows on a fake clock."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from mednext_edge.errors import MednextEdgeError
from mednext_edge.fusion.cuda_block import FusedBlock
from mednext_edge.fusion.depthwise import DepthwiseConv
from mednext_edge.models.cmunext import CMUNeXtConfig
from mednext_edge.models.config import MedNeXtConfig
from mednext_edge.ops import block3d_cuda, cuda_library
from mednext_edge.ops.cuda_library import ComputePath, CudaLibrary

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # as for a script that is run there
gpu_kernels, timing, checking, depthwise, blocks, networks = (
    importlib.import_module(name)
    for name in ("gpu_kernels", "gpu.timing", "gpu.checking", "gpu.depthwise", "gpu.blocks", "gpu.networks")
)
CPU = torch.device("cpu")

every_operation = pytest.mark.parametrize("operation", depthwise.OPERATIONS)
every_kind = pytest.mark.parametrize("kind", blocks.KINDS)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything takes 2 ms; memory figures are those of a device that holds nothing; nothing is compiled."""

    def graph(call: Any, device: torch.device) -> Any:
        call(5)
        return lambda: 2.0

    def compiled(function: Any, **_: object) -> Any:
        return function

    monkeypatch.setattr(timing, "elapsed", lambda call, device: 2.0)
    monkeypatch.setattr(timing, "graph", graph)
    monkeypatch.setattr(networks, "capture", lambda step, device: (step, None))
    monkeypatch.setattr(torch, "compile", compiled)
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    for name in ("max_memory_allocated", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 0)


def layer(operation: str, dtype: torch.dtype = torch.float16) -> Any:
    return depthwise.Case(operation, 1, 8, (3, 5, 4), 3, dtype)


def block(kind: str, dtype: torch.dtype = torch.float16, *, gradients: bool = False) -> Any:
    """A block for the second kernel; odd sizes, and more voxels than one tile."""
    return blocks.Case(kind, 1, 64, (5, 6, 7), 3, 2, dtype, gradients)


@every_operation
@pytest.mark.parametrize("dtype", depthwise.DTYPES, ids=str)
def test_our_depthwise_kernels_are_right(kernels: CudaLibrary, operation: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for kernel, channels, size in (
        (3, 8, (3, 5, 4)),
        (5, 3, (1, 6, 2)),
        (7, 8, (5, 4)),
        (9, 3, (6, 2)),
        (3, 3, (3, 9)),
    ):
        for path in depthwise.paths(operation, kernel, dtype, len(size)):
            assert 0 <= checking.check(depthwise.Case(operation, 2, channels, size, kernel, dtype, path), CPU) <= 1


@every_kind
@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "gradients"])
@pytest.mark.parametrize("dtype", depthwise.DTYPES, ids=str)
def test_our_blocks_are_right(kernels: CudaLibrary, kind: str, dtype: torch.dtype, gradients: bool) -> None:
    torch.manual_seed(0)
    assert 0 <= checking.check(block(kind, dtype, gradients=gradients), CPU) <= 1


@pytest.mark.parametrize("fault", ["scaled", "one voxel", "not written", "another every time"])
@pytest.mark.parametrize(
    "case",
    [*map(layer, depthwise.OPERATIONS), *map(block, blocks.KINDS), block("up block", gradients=True)],
    ids=str,
)
def test_a_fault_is_found(kernels: CudaLibrary, monkeypatch: pytest.MonkeyPatch, case: Any, fault: str) -> None:
    right, calls = type(case).ours, itertools.count()

    def wrong(self: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        first, *rest = right(self, *inputs)
        if fault == "scaled":
            first = first * 1.02
        elif fault == "one voxel":
            first[(0,) * first.dim()] += first.abs().max() / 10
        elif fault == "not written":
            first = torch.empty_like(first)
        else:
            first = first * (1 + 3e-3 * next(calls))
        return (first, *rest)

    torch.manual_seed(0)
    monkeypatch.setattr(type(case), "ours", wrong)
    assert not checking.check(case, CPU) <= 1
    _, failed = checking.checked([case], CPU)
    assert len(failed) == 1 and failed[0].startswith(f"{case}: ")


def test_what_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [SimpleNamespace(name=name) for name in "ab"]
    monkeypatch.setattr(depthwise, "CHECKED", cases)
    monkeypatch.setattr(blocks, "CHECKED", cases)
    ratios = iter((0.5, 0.9, 0.1, math.nan))
    monkeypatch.setattr(checking, "check", lambda case, device: next(ratios))
    with pytest.raises(MednextEdgeError, match=r"1 of 4 results are wrong:\n.*name='b'\): nan times the error allowed"):
        gpu_kernels.all_right(CPU)


def test_cases_cover_every_kernel_type_and_alignment() -> None:
    for dims, tensor in ((3, (3, 5, 7)), (2, (5, 7))):
        cases = [c for c in depthwise.CHECKED if len(c.size) == dims]
        assert {(c.operation, c.kernel, c.dtype) for c in cases} == set(
            itertools.product(depthwise.OPERATIONS, (3, 5, 7, 9), depthwise.DTYPES)
        )
        assert {c.channels % 8 == 0 for c in cases} == {True, False}
        both = {ComputePath.FMA, ComputePath.TENSOR}
        chosen = ("forward", "forward with statistics", "input gradient")
        for name, kernel, dtype in itertools.product(chosen, tensor, (torch.float16, torch.bfloat16)):
            assert {c.path for c in cases if (c.operation, c.kernel, c.dtype) == (name, kernel, dtype)} == both
        rows = [c for c in depthwise.TIMED if len(c.size) == dims]
        timed = {(c.operation, c.kernel) for c in rows if c.path == ComputePath.TENSOR}
        assert timed == set(itertools.product(chosen, tensor))
        assert {c.operation for c in rows} == set(depthwise.OPERATIONS)


def test_cases_cover_every_width_of_the_second_kernel() -> None:
    def second(case: Any) -> bool:
        _, _, _, _, w1, _, w2, *_ = (torch.empty(shape, device="meta") for shape in case.shapes())
        return block3d_cuda.takes(torch.empty(1, case.channels, 1, 1, 1, dtype=case.dtype, device="meta"), w1, w2)

    taken = [c for c in blocks.CHECKED if second(c)]
    widths = {(32, 32), (32, 64), (64, 32), (64, 64), (64, 128), (128, 64), (128, 128)}
    for dtype, gradients in itertools.product((torch.float16, torch.bfloat16), (False, True)):
        assert {(c.channels, c.out) for c in taken if (c.dtype, c.gradients) == (dtype, gradients)} == widths
    assert {(c.kind, c.dtype, c.gradients) for c in blocks.CHECKED if c not in taken} == set(
        itertools.product(blocks.KINDS, depthwise.DTYPES, (False, True))
    )
    assert {c.kind for c in blocks.TIMED} == set(blocks.KINDS)
    assert [c.channels for c in blocks.TIMED if (c.kind, c.kernel) == ("block", 5)] == [32, 64, 128, 256, 512]


def test_bytes_that_must_be_moved() -> None:
    size = (4, 6, 8)
    elements = {name: depthwise.Case(name, 2, 3, size, 3, torch.float16).elements / 6 for name in depthwise.OPERATIONS}
    voxels = math.prod(size)
    expected = dict.fromkeys(elements, 2 * voxels) | {"stride 2": voxels * 9 / 8, "transposed": voxels + 7 * 11 * 15}
    assert elements == expected


def test_bytes_that_two_kernels_move() -> None:
    elements = {kind: blocks.Case(kind, 1, 2, (4, 6, 8), 3, 4, torch.float16).elements for kind in blocks.KINDS}
    assert elements == {
        "block": 5 * 2 * 192,
        "down block": 2 * 192 + 2 * 2 * 24 + 2 * 4 * 24,
        "up block": 2 * 192 + 2 * 2 * 7 * 11 * 15 + 2 * 8 * 192,
    }


@every_operation
@pytest.mark.parametrize("size", [(4, 4, 4), (4, 4)])
def test_a_row_of_a_convolution(kernels: CudaLibrary, clock: None, size: tuple[int, ...], operation: str) -> None:
    case = depthwise.Case(operation, 1, 8, size, 3, torch.float16)
    row = json.loads(json.dumps(depthwise.measure(case, CPU, cache=10**6, bandwidth=1e-3)))
    assert row["microseconds"] == dict.fromkeys(("ours", "torch contiguous", "torch channels-last"), 2000)
    assert row["times_faster_than_best_torch"] == 1
    # 2 bytes an element in 2 ms, of 1e6 bytes/s.
    assert row["percent_of_copy_bandwidth"] == round(100 * case.elements * 2 / 0.002 / 1e6, 1)
    assert (row["operation"], row["dtype"], row["path"], row["inputs_fit_in_cache"]) == (
        operation,
        "float16",
        "AUTO",
        True,
    )


@every_kind
def test_a_row_of_a_block(kernels: CudaLibrary, clock: None, kind: str) -> None:
    case = block(kind)
    with torch.inference_mode():
        row = json.loads(json.dumps(blocks.measure(case, CPU, cache=10**4, bandwidth=1e-3)))
    names = ("ours", "torch contiguous", "torch channels-last", "torch compiled")
    assert row["microseconds"] == dict.fromkeys(names, 2000)
    assert row["times_faster_than_eager"] == row["times_faster_than_compiled"] == 1
    assert row["percent_of_copy_bandwidth"] == round(100 * case.elements * 2 / 0.002 / 1e6, 1)
    assert (row["kind"], row["ratio"], row["dtype"], row["inputs_fit_in_cache"]) == (kind, 2, "float16", False)


def tiny(variant: str, kernel: int) -> MedNeXtConfig:
    return MedNeXtConfig(
        channels=4, blocks=(1,) * 3, expansion=(2,) * 3, down_expansion=(2,), down_grn=(False,), encoder_kernel=kernel
    )


def tiny_2d(variant: str, *, in_channels: int) -> CMUNeXtConfig:
    return CMUNeXtConfig(in_channels, 1, (4,) * 5, (1,) * 5, (3, 3, 5, 7, 9))


@pytest.mark.parametrize("training", [False, True])
def test_a_row_of_a_network(kernels: CudaLibrary, clock: None, monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    monkeypatch.setattr(networks, "mednext_config", tiny)
    row = json.loads(json.dumps(networks.measure(networks.Network("S", 3, 1, training, 4), CPU)))
    eager = ("torch contiguous", "torch channels-last")
    names = ("ours", *eager) if training else ("ours", *eager, "torch compiled")
    assert row["milliseconds"] == dict.fromkeys(names, 2.0)
    assert row["times_faster"] == dict.fromkeys(names[1:], 1.0)
    assert row["peak_gb_above_weights"] == dict.fromkeys(("ours", *eager), 0.0)
    assert row["network"].endswith("training step" if training else "inference")
    assert row["left_out"] == {}


def test_a_row_of_a_network_in_2d(kernels: CudaLibrary, clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "cmunext_config", tiny_2d)
    network = networks.Network("L", None, 2, patch=32)
    row = json.loads(json.dumps(networks.measure(network, CPU)))
    assert row["network"] == "CMUNeXt-L, 2 x 32^2, inference"
    assert set(row["times_faster"]) == {"torch contiguous", "torch channels-last", "torch compiled"}
    assert sum(map(len, row["left_out"])) == 0
    seen: list[Any] = []
    monkeypatch.setattr(networks, "CMUNeXt", lambda config: seen.append(made := original(config)) or made)
    original = importlib.import_module("mednext_edge.models.cmunext").CMUNeXt
    for name, how in networks.TRAINING.items():
        networks.prepared(replace(network, training=True), how, CPU)()
        ours = [module for module in seen[-1].modules() if isinstance(module, DepthwiseConv)]
        assert len(ours) == (5 if name == "ours" else 0)
        assert any(p.grad is not None for p in seen[-1].parameters())


@pytest.mark.parametrize("training", [False, True])
def test_the_contenders(clock: None, monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    """Ours holds our operators, the others none; each computes the same, in the type that it says."""
    seen: list[Any] = []
    monkeypatch.setattr(networks, "mednext_config", tiny)
    monkeypatch.setattr(networks, "MedNeXt", lambda config: seen.append(made := original(config)) or made)
    original = importlib.import_module("mednext_edge.models.mednext").MedNeXt
    contenders = networks.TRAINING if training else networks.INFERENCE
    for name, how in contenders.items():
        networks.prepared(networks.Network("S", 3, 1, training, 4), how, CPU)()
        net = seen[-1]
        assert sum(isinstance(module, FusedBlock) for module in net.modules()) == (5 if name == "ours" else 0)
        assert {p.dtype for p in net.parameters()} == {torch.float32 if how.autocast else torch.float16}
        assert any(p.grad is not None for p in net.parameters()) == training


def test_a_contender_that_does_not_fit_is_left_out(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    full = {"torch contiguous"}

    def prepared(network: Any, how: Any, device: torch.device) -> Any:
        if [name for name in full if networks.TRAINING[name] == how]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB.")
        return lambda: None

    monkeypatch.setattr(networks, "prepared", prepared)
    network = networks.Network("B", 5, 2, True)
    row = networks.measure(network, CPU)
    assert row["left_out"] == {"torch contiguous": "CUDA out of memory"}
    assert row["times_faster"] == {"torch channels-last": 1.0}
    full.add("ours")
    assert "milliseconds" not in networks.measure(network, CPU)


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
    for part, case in ((depthwise, layer("forward")), (blocks, block("block"))):
        for name in ("CHECKED", "TIMED"):
            monkeypatch.setattr(part, name, [case])
    monkeypatch.setattr(networks, "mednext_config", tiny)
    monkeypatch.setattr(networks, "TIMED", [replace(networks.TIMED[0], patch=4)])
    done = CliRunner().invoke(program(), ["--out", str(tmp_path / "results"), "--json"])
    assert done.exit_code == 0, done.stderr
    (file,) = (tmp_path / "results").iterdir()
    assert file.name.startswith("nvidia-fake-1-20") and file.suffix == ".json"
    result = json.loads(done.stdout)
    assert result == json.loads(file.read_text())
    assert [result["checks"][part]["results"] for part in ("depthwise", "blocks")] == [1, 1]
    assert [len(result[part]) for part in ("depthwise", "blocks", "networks")] == [1, 1, 1]
    assert result["capability"] == "9.0"
    assert cuda_library.library().path.name not in file.read_text()


@pytest.mark.skipif(not torch.cuda.is_available() or not cuda_library.available(), reason="no GPU, or no CUDA kernels")
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for part in (depthwise, blocks):
        monkeypatch.setattr(part, "CHECKED", part.CHECKED[::7])
    assert gpu_kernels.all_right(torch.device("cuda"))["blocks"]["worst_error_over_allowed"] <= 1


def test_a_graph_repeats_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many calls as fill a round, on inputs that change; the time is that of one call."""
    called: list[int] = []

    def capture(step: Any, device: torch.device) -> Any:
        return step, None

    def elapsed(call: Any, device: torch.device) -> float:
        before = len(called)
        call()
        return 0.5 * (len(called) - before)

    monkeypatch.setattr(timing, "capture", capture)
    monkeypatch.setattr(timing, "elapsed", elapsed)
    run = timing.graph(called.append, CPU)
    called.clear()
    assert run() == 0.5
    assert called == [0, 1, 2, 3]
