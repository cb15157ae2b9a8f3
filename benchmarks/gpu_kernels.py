"""Our CUDA kernels against PyTorch's on the GPU of this machine: first whether they are right, then how fast.

    python benchmarks/gpu_kernels.py [--out FOLDER] [--json]

Right: on fresh random inputs, in memory that was filled with NaN, every result errs at most twice as much as
PyTorch's in the same type, both against float64, and comes out with the same bits again. Fast: ours and PyTorch's
in both layouts, for blocks and networks compiled too, taken in turns, each as a CUDA graph of several calls on changing
inputs, so that neither Python nor the cache decides; eager networks run as they are. Writes FOLDER/<gpu>-<date>.json.
Exit code 5 without a GPU or without the kernels, 1 when a result is wrong (then nothing is timed).
"""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from gpu import blocks, depthwise, networks, timing
from gpu.checking import checked

from mednext_edge.environment import environment
from mednext_edge.errors import MednextEdgeError, TargetUnavailableError
from mednext_edge.ops import cuda_library

RESULTS = Path(__file__).parent / "results"


def torch_device() -> torch.device:
    """The GPU that everything runs on."""
    if not torch.cuda.is_available():
        raise TargetUnavailableError(
            f"no CUDA device for PyTorch {torch.__version__}; run this on an NVIDIA GPU, with a CUDA build of torch"
        )
    return torch.device("cuda", torch.cuda.current_device())


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def all_right(device: torch.device) -> dict[str, Any]:
    """The checks of depthwise convolutions and blocks.

    Raises:
        MednextEdgeError: some are wrong; names them.
    """
    found = {"depthwise": checked(depthwise.CHECKED, device), "blocks": checked(blocks.CHECKED, device)}
    wrong = [words for _, failed in found.values() for words in failed]
    if wrong:
        count = sum(summary["results"] for summary, _ in found.values())
        raise MednextEdgeError(f"{len(wrong)} of {count} results are wrong:\n" + "\n".join(wrong))
    return {name: summary for name, (summary, _) in found.items()}


def benchmark(device: torch.device) -> dict[str, Any]:
    """Everything, as written to the result."""
    about = torch.cuda.get_device_properties(device)
    cache = int(about.L2_cache_size)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32 on both sides
    checks = all_right(device)
    say(f"{about.name}: all right: {json.dumps(checks)}")
    torch.backends.cudnn.benchmark = True
    rows: dict[str, list[dict[str, Any]]] = {"depthwise": [], "blocks": [], "networks": []}
    with torch.inference_mode():
        bandwidth = timing.copy_bandwidth(device, cache)
        say(f"copy bandwidth {bandwidth:.0f} GB/s")
        for case in depthwise.TIMED:
            rows["depthwise"].append(depthwise.measure(case, device, cache, bandwidth))
            say(f"{case}: {json.dumps(rows['depthwise'][-1])}")
        for block in blocks.TIMED:
            rows["blocks"].append(blocks.measure(block, device, cache, bandwidth))
            say(f"{block}: {json.dumps(rows['blocks'][-1])}")
    for network in networks.TIMED:
        torch.cuda.empty_cache()
        rows["networks"].append(networks.measure(network, device))
        say(json.dumps(rows["networks"][-1]))
    return {
        "gpu": about.name,
        "capability": f"{about.major}.{about.minor}",
        "multiprocessors": about.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "environment": environment().model_dump(),
        "copy_gb_s": round(bandwidth, 1),
        "checks": checks,
        **rows,
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
