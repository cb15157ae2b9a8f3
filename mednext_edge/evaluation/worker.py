"""One side of a comparison, in a process of its own: opens an engine and times it when told to.

It is run as a file, with the package of another revision in front of this one where that is asked for, and uses nothing
of the package but its verbs: `load`, `export` and `open`. Requests come as lines of JSON on stdin, answers go as lines
of JSON to stdout; whatever libraries print goes to stderr.

    {"package": null, "source": "bundle", "patch": null, ...}   ->  {"patch": [96, 96, 96], "channels": 1, ...}
    {"calls": 3}                                                ->  {"wall": 812.5, "cpu": 1590.2}     ms of one call
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGE = "mednext_edge"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    answer(_open)


def answer(open_: Callable[[dict[str, Any]], tuple[Any, Any] | None]) -> None:
    """Serve the pipes until the input ends.

    Args:
        open_: of the first request: a session and an input for it; None when there is nothing to time.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**what: object) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    try:
        opened = open_(json.loads(sys.stdin.readline()))
        if opened is None:
            say(done=True)
            return
        session, x = opened
        say(
            provider=session.provider,
            precision=session.precision,
            channels=x.shape[1],
            patch=x.shape[2:],
        )
        for line in sys.stdin:
            calls = int(json.loads(line)["calls"])
            start = [clock() for clock in CLOCKS.values()]
            for _ in range(calls):
                session.run(x)
            ends = [clock() for clock in CLOCKS.values()]
            taken = {name: (b - a) * 1e3 / calls for name, a, b in zip(CLOCKS, start, ends, strict=True)}
            say(**taken)
        session.close()
    except Exception as error:  # whatever it is, the other side of the pipe must learn of it
        say(error=str(error), kind=type(error).__name__)
        raise


def _import_from(folder: str | None) -> Any:
    """The package in this folder, or the one that is installed."""
    if folder is None:
        return importlib.import_module(PACKAGE)
    # An editable installation would come before it.
    sys.meta_path[:] = [finder for finder in sys.meta_path if not _finds_ours(finder)]
    sys.path.insert(0, folder)
    package = importlib.import_module(PACKAGE)
    found = Path(str(package.__file__)).resolve()
    if not found.is_relative_to(Path(folder).resolve()):
        raise RuntimeError(f"{PACKAGE} was imported from {found}; expected it in {folder}")
    return package


def _finds_ours(finder: Any) -> bool:
    known = getattr(finder, "known_source_files", None) or getattr(finder, "known_packages", None) or ()
    return PACKAGE in known


def _export(mx: Any, request: dict[str, Any]) -> None:
    calibration = None
    if request["calib"] is not None:
        calibration = importlib.import_module(f"{PACKAGE}.data.dataset").open_dataset(request["calib"])
    patch = tuple(request["patch"]) if request["patch"] else None
    mx.export(
        mx.load(request["source"]),
        target=request["target"],
        precision=request["precision"],
        calibration=calibration,
        patch=patch,
        out=Path(request["out"]),
    )


def _open(request: dict[str, Any]) -> tuple[Any, Any] | None:
    mx = _import_from(request["package"])
    if request.get("out"):
        _export(mx, request)
        return None
    import numpy as np

    source: Any = request["source"]
    if not (Path(source) / "manifest.json").is_file():
        source = mx.load(source)
    patch = tuple(request["patch"]) if request["patch"] else None
    session = mx.open(source, device=request["device"], threads=request["threads"], patch=patch)
    size = patch or session.patch or session.task.inference.patch
    shape = (1, session.task.model.in_channels, *size)
    return session, np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


if __name__ == "__main__":
    main()
