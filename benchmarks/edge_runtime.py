"""libmednext_edge on this machine: against the Python Predictor, and over many volumes.

    python benchmarks/edge_runtime.py compare BUNDLE IMAGE ... [--rounds N] [--mirror] [--json]
    python benchmarks/edge_runtime.py around BUNDLE IMAGE ... [--rounds N] [--mirror] [--json]
    python benchmarks/edge_runtime.py stream BUNDLE IMAGE --seconds S [--rounds N] [--json]
    python benchmarks/edge_runtime.py soak BUNDLE [--volumes 500] [--reopen 100] [--json]

`compare` runs every image in both, in turns, from voxels in memory to labels on the image's grid; peak memory is that
of a process for each, from start to labels, reading the file included. Times are those of the clock and of the
processors, which other work on the machine disturbs less. `around` does the same with a stand-in for the
network, so that only what is around it is timed. `stream` hands the slices over one by one, as
many seconds as an acquisition takes, and says how long after the last one the labels are there, with a stream and
without. `soak` says how much more memory the process holds after the last volumes than after the first.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from subprocess import PIPE, run
from typing import Annotated, Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mednext_edge as mx
from benchmarks.edge.library import EdgeLibrary, segment_options
from benchmarks.edge.soak import soak as run_soak
from mednext_edge import cpu
from mednext_edge.data.volume import Volume, read_image
from mednext_edge.environment import environment

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)
RESAMPLES = 10_000
# Reads the image, opens the bundle, segments once, and says the most memory the process ever held, in KiB.
PEAK = """
import re, sys
from pathlib import Path
bundle, image, mirror = sys.argv[2], sys.argv[3], sys.argv[4] == "1"
if sys.argv[1] == "python":
    import mednext_edge as mx
    with mx.open(bundle) as session:
        mx.predict(session, image, mirror=mirror)
else:
    sys.path.insert(0, sys.argv[5])
    import numpy as np
    from types import SimpleNamespace
    from edge.library import EdgeLibrary, segment_options
    saved = np.load(image)
    volume = SimpleNamespace(array=saved["array"], affine=saved["affine"], spatial=saved["array"].shape[1:])
    with EdgeLibrary(Path(sys.argv[6])).open(Path(bundle)) as model:
        model.segment(volume, segment_options(mirror=mirror))
# Not ru_maxrss, which a process inherits from the one that started it.
print(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))
"""


def library_path() -> Path:
    path = cpu.edge_library()
    assert path is not None, "libmednext_edge is not installed"
    return path


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """Median of the paired ratios with its 95 % bootstrap interval."""
    logs = np.log(slow) - np.log(fast)
    drawn = np.random.default_rng(0).integers(len(logs), size=(RESAMPLES, len(logs)))
    low, high = np.percentile(np.median(logs[drawn], axis=1), [2.5, 97.5])
    return {"value": float(np.exp(np.median(logs))), "low": float(np.exp(low)), "high": float(np.exp(high))}


def peak_mb(kind: str, bundle: Path, image: Path, mirror: bool) -> float:
    here = Path(__file__).resolve().parent
    words = [sys.executable, "-c", PEAK, kind, bundle, image, str(int(mirror)), here, library_path()]
    return int(run([str(word) for word in words], stdout=PIPE, check=True, text=True).stdout) * 1024 / 1e6


@app.command()
def compare(
    bundle: Path,
    images: list[Path],
    rounds: Annotated[int, typer.Option(min=2)] = 7,
    mirror: bool = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """End to end, in turns: the same labels, time, and memory."""
    results: list[dict[str, Any]] = []
    with mx.open(bundle) as session, EdgeLibrary(library_path()).open(bundle) as model:
        for path in images:
            volume = read_image(path)
            options = segment_options(mirror=mirror)
            taken: dict[str, list[float]] = {"python": [], "native": []}
            used: dict[str, list[float]] = {"python": [], "native": []}
            labels = {"python": mx.predict(session, volume, mirror=mirror), "native": model.segment(volume, options)}
            for index in range(rounds):
                for name in ("python", "native") if index % 2 else ("native", "python"):
                    start, before = time.perf_counter(), time.process_time()
                    if name == "python":
                        mx.predict(session, volume, mirror=mirror)
                    else:
                        model.segment(volume, options)
                    taken[name].append(time.perf_counter() - start)
                    used[name].append(time.process_time() - before)
                print(f"\r{path.name}: round {index + 1} of {rounds}", end="", file=sys.stderr)
            print(file=sys.stderr)
            results.append(
                {
                    "image": path.name,
                    "shape": volume.spatial,
                    "different_voxels": int((labels["python"] != labels["native"]).sum()),
                    "agreement": float((labels["python"] == labels["native"]).mean()),
                    "seconds": {name: float(np.median(times)) for name, times in taken.items()},
                    "processor_s": {name: float(np.median(times)) for name, times in used.items()},
                    "python_over_native": ratio(taken["python"], taken["native"]),
                    "python_over_native_processor": ratio(used["python"], used["native"]),
                    "peak_memory_mb": _peaks(bundle, path, volume, mirror),
                }
            )
        info = model.describe()
        about = {"bundle": info.name.decode(), "precision": info.precision.decode(), "provider": info.provider.decode()}
    report = {**about, "mirror": mirror, "rounds": rounds, "images": results, "environment": environment().model_dump()}
    show(report, as_json)


@app.command()
def around(
    bundle: Path,
    images: list[Path],
    rounds: Annotated[int, typer.Option(min=2)] = 15,
    mirror: bool = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Everything but the network, in turns."""
    from benchmarks.edge.around import around as run_around  # brings what only tests need

    found = run_around(bundle, [read_image(path) for path in images], rounds, mirror)
    results = [
        {
            "image": path.name,
            "different_voxels": one.different_voxels,
            "seconds": {name: float(np.median(times)) for name, times in one.seconds.items()},
            "processor_s": {name: float(np.median(times)) for name, times in one.processor_s.items()},
            "python_over_native": ratio(one.seconds["python"], one.seconds["native"]),
            "python_over_native_processor": ratio(one.processor_s["python"], one.processor_s["native"]),
        }
        for path, one in zip(images, found, strict=True)
    ]
    report = {"bundle": bundle.name, "mirror": mirror, "rounds": rounds, "images": results}
    show({**report, "environment": environment().model_dump()}, as_json)


def _peaks(bundle: Path, path: Path, volume: Volume, mirror: bool) -> dict[str, float]:
    """Of Python with its own reader, and of the library in a process that imports NumPy alone."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "volume.npz"
        np.savez(saved, array=volume.array, affine=volume.affine)
        return {"python": peak_mb("python", bundle, path, mirror), "native": peak_mb("native", bundle, saved, mirror)}


@app.command()
def stream(
    bundle: Path,
    image: Path,
    seconds: Annotated[float, typer.Option(min=0, help="From the first slice to the last.")],
    rounds: Annotated[int, typer.Option(min=2)] = 3,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """From the last slice to the labels: with a stream, and waiting for the whole volume."""
    volume = read_image(image)
    slices = volume.spatial[0]
    taken: dict[str, list[float]] = {"stream": [], "whole": []}
    with EdgeLibrary(library_path()).open(bundle) as model:
        expected = model.segment(volume)
        for _ in range(rounds):
            start = time.perf_counter()
            model.segment(volume)
            taken["whole"].append(time.perf_counter() - start)
            with model.stream(volume) as arriving:
                for z in range(slices):
                    arriving.push(z, 1)
                    if z + 1 < slices:
                        time.sleep(seconds / (slices - 1))
                last = time.perf_counter()
                labels = arriving.finish()
                taken["stream"].append(time.perf_counter() - last)
                info = arriving.describe()
    report = {
        "bundle": bundle.name,
        "image": image.name,
        "shape": volume.spatial,
        "acquisition_s": seconds,
        "patches": info.patches,
        "patches_early": info.patches_early,
        "why_none_early": info.reason.decode(),
        "different_voxels": int((labels != expected).sum()),
        "seconds_after_last_slice": {name: float(np.median(times)) for name, times in taken.items()},
        "whole_over_stream": ratio(taken["whole"], taken["stream"]),
        "environment": environment().model_dump(),
    }
    show(report, as_json)


@app.command()
def soak(
    bundle: Path,
    volumes: Annotated[int, typer.Option(min=80)] = 500,
    reopen: Annotated[int, typer.Option(help="Open the bundle anew after so many volumes; 0: once.")] = 0,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Random volumes, every second one as a stream: does the process grow?"""

    def tell(done: int, total: int) -> None:
        print(f"\r{done} of {total} volumes", end="" if done < total else "\n", file=sys.stderr)

    start = time.perf_counter()
    found = run_soak(EdgeLibrary(library_path()), bundle, volumes, reopen=reopen, progress=tell)
    report = {**asdict(found), "growth_mb": found.growth_mb, "seconds": time.perf_counter() - start}
    show({**report, "environment": environment().model_dump()}, as_json)


def show(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))
        return
    for key, value in report.items():
        if key != "environment":
            print(f"{key}: {json.dumps(value, indent=2) if isinstance(value, list) else value}")


if __name__ == "__main__":
    app()
