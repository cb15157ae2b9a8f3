"""One engine of the comparison, prepared or timed in a process of its own; see `mednext_edge.evaluation.worker`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from mednext_edge.evaluation.worker import answer

FOLDER = str(Path(__file__).resolve().parents[1])


def _open(request: dict[str, Any]) -> tuple[Any, Any] | None:
    sys.path.insert(0, FOLDER)
    from peers.engines import ENGINES, prepare
    from peers.networks import network

    engine, folder, patch = request["engine"], Path(request["folder"]), tuple(request["patch"])

    if request["prepare"]:
        prepare(engine, network(request["network"], patch), folder)
        return None
    session = ENGINES[engine].open(folder, lambda: network(request["network"], patch), request["threads"])
    shape = (1, session.task.model.in_channels, *patch)
    return session, np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


if __name__ == "__main__":
    answer(_open)
