"""Our CUDA kernels against PyTorch's on the GPU of this machine: first whether they are right, then how fast.

    python benchmarks/gpu_kernels.py [--out FOLDER] [--json]

Right: on fresh random inputs, in memory that was filled with NaN, every result errs at most twice as much as
PyTorch's in the same type, both against float64, and comes out with the same bits again. Fast: ours and PyTorch's
in both layouts, taken in turns, each as a CUDA graph of several calls on changing inputs, so that neither Python
nor the cache decides. Writes FOLDER/<gpu>-<date>.json. Exit code 5 without a GPU or without the kernels, 1 when a
result is wrong (then nothing is timed).
"""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from mednext_edge.environment import environment
from mednext_edge.errors import MednextEdgeError, TargetUnavailableError
from mednext_edge.fusion.cuda_depthwise import use_cuda_depthwise
from mednext_edge.models.config import mednext_config
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.ops import cuda_library, depthwise3d_cuda
from mednext_edge.ops import depthwise3d as ops
from mednext_edge.runtime.cuda_graph import capture

RESULTS = Path(__file__).parent / "results"
LAST = torch.channels_last_3d
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": LAST}
ROUNDS = 9
ROUND_MS = 2.0
COPIES = 16
"""Inputs that the calls of one graph go through, at most."""

Call = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


def torch_forward(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    return F.conv3d(x, weight, None, stride, weight.shape[-1] // 2, groups=x.shape[1])


def torch_gradients(x: Tensor, weight: Tensor, y: Tensor, wanted: tuple[bool, bool]) -> tuple[Tensor, ...]:
    """What autograd calls for F.conv3d."""
    pad = [weight.shape[-1] // 2] * 3
    sizes = [1] * 3, pad, [1] * 3, False, [0] * 3
    grads = torch.ops.aten.convolution_backward(y, x, weight, None, *sizes, x.shape[1], [*wanted, False])
    return tuple(g for g, want in zip(grads, wanted, strict=False) if want)


def torch_statistics(x: Tensor, weight: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """The convolution and what an instance norm behind it takes of it; no less than float32."""
    out = torch_forward(x, weight)
    wide = out if out.dtype == torch.float64 else out.float()
    var, mean = torch.var_mean(wide.flatten(2), 2, correction=0)
    return out, mean, var * wide[0, 0].numel()


@dataclass(frozen=True)
class Operation:
    """One pass, by our kernels and by PyTorch: (input, weight, output or its gradient) -> results."""

    ours: Call
    torchs: Call
    stride: int = 1
    transposed: bool = False

    def output(self, n: int) -> int:
        return 2 * n - 1 if self.transposed else (n - 1) // self.stride + 1


OPERATIONS = {
    "forward": Operation(
        lambda x, w, y: (ops.convolution(x, w, None, 1),),
        lambda x, w, y: (torch_forward(x, w),),
    ),
    "forward with statistics": Operation(
        lambda x, w, y: depthwise3d_cuda.convolution_stats(x, w, None, 1), torch_statistics
    ),
    "stride 2": Operation(
        lambda x, w, y: (ops.convolution(x, w, None, 2),),
        lambda x, w, y: (torch_forward(x, w, 2),),
        stride=2,
    ),
    "transposed": Operation(
        lambda x, w, y: (ops.adjoint(x, w, None, y.shape[2:], 2),),
        lambda x, w, y: (F.conv_transpose3d(x, w, None, 2, w.shape[-1] // 2, groups=x.shape[1]),),
        stride=2,
        transposed=True,
    ),
    "input gradient": Operation(
        lambda x, w, y: (ops.adjoint(y, w, None, x.shape[2:], 1),),
        lambda x, w, y: torch_gradients(x, w, y, (True, False)),
    ),
    "weight gradient": Operation(
        lambda x, w, y: (ops.weight_gradient(x, y, w.shape[-1], 1),),
        lambda x, w, y: torch_gradients(x, w, y, (False, True)),
    ),
}


@dataclass(frozen=True)
class Case:
    """A layer: name of its operation, and the size of its input."""

    operation: str
    batch: int
    channels: int
    size: tuple[int, int, int]
    kernel: int
    dtype: torch.dtype

    def draw(self, device: torch.device, layout: torch.memory_format = LAST) -> tuple[Tensor, Tensor, Tensor]:
        """Fresh random input, weight, and output gradient."""
        out = [OPERATIONS[self.operation].output(n) for n in self.size]
        x, y = (
            torch.randn((self.batch, self.channels, *size), device=device, dtype=self.dtype).contiguous(
                memory_format=layout
            )
            for size in (self.size, out)
        )
        weight = torch.randn((self.channels, 1, *(self.kernel,) * 3), device=device, dtype=self.dtype)
        return x, weight / self.kernel**1.5, y

    @property
    def elements(self) -> int:
        """Of the tensors that must be read or written once: what enters and what leaves."""
        output = (OPERATIONS[self.operation].output(n) for n in self.size)
        return self.batch * self.channels * (math.prod(self.size) + math.prod(output))

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        return f"{self.operation} k{self.kernel} {str(self.dtype)[6:]} ({self.batch}, {self.channels}, {size})"


DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CHECKED = [
    Case(name, batch, channels, size, kernel, dtype)
    for name, kernel, dtype in itertools.product(OPERATIONS, (3, 5, 7, 9), DTYPES)
    for batch, channels, size in (
        (2, 3, (5, 7, 9)),
        (1, 8, (1, 1, 1)),
        (1, 32, (16, 17, 18)),
        (2, 72, (33, 9, 8)),
        (1, 20, (2, 70, 35)),
    )
]
LEVELS = ((32, 128), (64, 64), (128, 32), (256, 16), (512, 8))
"""(channels, side) of a 128^3 patch in MedNeXt."""
TIMED = [
    Case(name, 1, channels, (side,) * 3, kernel, dtype)
    for (channels, side), dtype, kernel, name in itertools.product(
        LEVELS, (torch.float16, torch.float32), (3, 5), OPERATIONS
    )
    if not (OPERATIONS[name].transposed and side == LEVELS[0][1])  # no layer doubles the full resolution
]


@contextmanager
def poisoned() -> Iterator[None]:
    """New memory is NaN: PyTorch fills what it allocates when it is to be deterministic."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def check(case: Case, device: torch.device) -> float:
    """Our worst error over the one that is allowed: right up to 1; NaN or infinity when a result is not finite."""
    operation, inputs = OPERATIONS[case.operation], case.draw(device)
    with poisoned():
        assert torch.empty(1, device=device).isnan().all()
        ours, again = operation.ours(*inputs), operation.ours(*inputs)
    if not all(torch.equal(a, b) for a, b in zip(ours, again, strict=True)):
        return math.inf
    exact = operation.torchs(*(t.double() for t in inputs))
    terms = operation.torchs(*(t.double().abs() for t in inputs))
    theirs = operation.torchs(*inputs)
    worst = 0.0
    for o, t, e, a in zip(ours, theirs, exact, terms, strict=True):
        # Where torch happens to hit the value: one rounding of the result, and of a float32 sum of these terms.
        floor = torch.finfo(o.dtype).eps * e.abs().max() + torch.finfo(torch.float32).eps * a.abs().max()
        allowed = torch.maximum(2 * (t.double() - e).abs().max(), floor)
        ratio = float((o.double() - e).abs().max() / allowed)
        if math.isnan(ratio):
            return math.nan
        worst = max(worst, ratio)
    return worst


def graph(call: Callable[[int], object], device: torch.device) -> Callable[[], float]:
    """Capture as many calls as fill a round; each run of the result gives milliseconds a call."""
    call(0)  # the first call chooses algorithms and loads code
    once = elapsed(lambda: call(0), device)
    count = min(max(math.ceil(ROUND_MS / once), 1), 4 * COPIES)

    def step() -> None:
        for i in range(count):
            call(i)

    replay, _ = capture(step, device)
    replay()
    return lambda: elapsed(replay, device) / count


def elapsed(call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds on the device."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end))


def in_turns(contenders: dict[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median of each over the rounds."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            taken[name].append(run())
    return {name: statistics.median(times) for name, times in taken.items()}


def copy_bandwidth(device: torch.device, cache: int) -> float:
    """GB/s of a copy that no cache holds, read and written bytes together."""
    source = torch.ones(max(2**28, 8 * cache), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    run = graph(lambda i: target.copy_(source), device)
    return 2 * source.numel() / in_turns({"copy": run})["copy"] / 1e6


def measure(case: Case, device: torch.device, cache: int, bandwidth: float) -> dict[str, Any]:
    """One row of the result."""
    operation, moved = OPERATIONS[case.operation], case.elements * case.dtype.itemsize
    copies = min(max(math.ceil(4 * cache / moved), 2), COPIES)
    inputs = {name: [case.draw(device, layout) for _ in range(copies)] for name, layout in LAYOUTS.items()}
    calls: dict[str, Callable[[int], object]] = {
        "ours": lambda i: operation.ours(*inputs["channels-last"][i % copies]),
        **{
            f"torch {name}": lambda i, given=given: operation.torchs(*given[i % copies])  # type: ignore[misc]
            for name, given in inputs.items()
        },
    }
    ms = in_turns({name: graph(call, device) for name, call in calls.items()})
    best = min(time for name, time in ms.items() if name != "ours")
    return {
        **asdict(case),
        "dtype": str(case.dtype)[6:],
        "microseconds": {name: round(1e3 * time, 2) for name, time in ms.items()},
        "times_faster_than_best_torch": round(best / ms["ours"], 2),
        "percent_of_copy_bandwidth": round(100 * moved / ms["ours"] / 1e6 / bandwidth, 1),
        "inputs_fit_in_cache": copies * moved < cache,
    }


def network(variant: str, kernel: int, patch: int, batch: int, training: bool, device: torch.device) -> dict[str, Any]:
    """A whole network in float16 autocast, eager, with our depthwise convolutions and without."""
    what = f"MedNeXt-{variant} k{kernel}, {batch} x {patch}^3, {'training step' if training else 'inference'}"
    runs: dict[str, Callable[[], float]] = {}
    peaks = {}
    try:
        for name, layout in {"ours": LAST, **{f"torch {name}": layout for name, layout in LAYOUTS.items()}}.items():
            step = prepared(variant, kernel, (batch, 1, *(patch,) * 3), training, layout, device, ours=name == "ours")
            step()
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            step()
            peaks[name] = round((torch.cuda.max_memory_allocated(device) - before) / 1e9, 3)
            runs[name] = lambda step=step: elapsed(step, device)  # type: ignore[misc]
        ms = in_turns(runs, rounds=5)
    except torch.OutOfMemoryError as error:
        return {"network": what, "left_out": str(error).split(".")[0]}
    return {
        "network": what,
        "milliseconds": {name: round(time, 2) for name, time in ms.items()},
        "times_faster_than_best_torch": round(min(ms["torch contiguous"], ms["torch channels-last"]) / ms["ours"], 2),
        "peak_gb_above_weights": peaks,
    }


def prepared(
    variant: str,
    kernel: int,
    shape: tuple[int, ...],
    training: bool,
    layout: torch.memory_format,
    device: torch.device,
    *,
    ours: bool,
) -> Callable[[], None]:
    """A network and its input on the device; each call is one inference, or one forward and backward pass."""
    torch.manual_seed(0)
    net = MedNeXt(mednext_config(variant, kernel=kernel)).train(training)
    net.to(device, memory_format=layout)  # type: ignore[call-overload]
    if ours:
        use_cuda_depthwise(net)
    x = torch.randn(shape, device=device).contiguous(memory_format=layout)

    def step() -> None:
        with torch.autocast(device.type, torch.float16), torch.set_grad_enabled(training):
            out = net(x)
        if training:
            net.zero_grad()
            (out.float().square().mean() * 128).backward()

    return step


def torch_device() -> torch.device:
    """The GPU that everything runs on."""
    if not torch.cuda.is_available():
        raise TargetUnavailableError(
            f"no CUDA device for PyTorch {torch.__version__}; run this on an NVIDIA GPU, with a CUDA build of torch"
        )
    return torch.device("cuda", torch.cuda.current_device())


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def checked(cases: list[Case], device: torch.device) -> dict[str, Any]:
    """The checks of all cases.

    Raises:
        MednextEdgeError: some are wrong; names them.
    """
    ratios = {str(case): check(case, device) for case in cases}
    wrong = [f"{name}: {ratio:.3g} times the error allowed" for name, ratio in ratios.items() if not ratio <= 1]
    if wrong:
        raise MednextEdgeError(f"{len(wrong)} of {len(cases)} results are wrong:\n" + "\n".join(wrong))
    return {"results": len(ratios), "worst_error_over_allowed": round(max(ratios.values()), 3)}


def benchmark(device: torch.device) -> dict[str, Any]:
    """Everything, as written to the result."""
    about = torch.cuda.get_device_properties(device)
    cache = int(about.L2_cache_size)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32 on both sides
    checks = checked(CHECKED, device)
    say(f"{about.name}: {checks['results']} results right")
    torch.backends.cudnn.benchmark = True
    with torch.inference_mode():
        bandwidth = copy_bandwidth(device, cache)
        say(f"copy bandwidth {bandwidth:.0f} GB/s")
        rows = []
        for case in TIMED:
            rows.append(measure(case, device, cache, bandwidth))
            faster, percent = rows[-1]["times_faster_than_best_torch"], rows[-1]["percent_of_copy_bandwidth"]
            say(f"{case}: {percent} % of bandwidth, {faster} times as fast as torch")
    networks = []
    for variant, kernel, batch, training in (("S", 3, 1, False), ("B", 5, 1, False), ("B", 5, 2, True)):
        networks.append(network(variant, kernel, 128, batch, training, device))
        say(json.dumps(networks[-1]))
        torch.cuda.empty_cache()
    return {
        "gpu": about.name,
        "capability": f"{about.major}.{about.minor}",
        "multiprocessors": about.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "environment": environment().model_dump(),
        "copy_gb_s": round(bandwidth, 1),
        "checks": checks,
        "kernels": rows,
        "networks": networks,
    }


def main(
    out: Annotated[Path, typer.Option(help="Folder for the result.")] = RESULTS,
    json_: Annotated[bool, typer.Option("--json", help="Put the result on stdout as well.")] = False,
) -> None:
    """Check our CUDA kernels on the GPU of this machine, then time them against PyTorch's."""
    try:
        device = torch_device()
        cuda_library.library()
        result = benchmark(device)
    except MednextEdgeError as error:
        say(f"error: {error}")
        raise typer.Exit(error.exit_code) from error
    gpu = re.sub(r"[^a-z0-9]+", "-", result["gpu"].lower()).strip("-")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{gpu}-{datetime.now(UTC):%Y-%m-%d}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)
    say(f"wrote {path}")
    if json_:
        print(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
