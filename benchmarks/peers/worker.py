"""One engine of the comparison in a process of its own; answers like `mednext_edge.evaluation.worker`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from mednext_edge.evaluation.worker import answer

FOLDER = str(Path(__file__).resolve().parents[1])


def _open(request: dict[str, Any]) -> tuple[Any, Any]:
    sys.path.insert(0, FOLDER)
    from peers.engines import session
    from peers.networks import network

    model = network(request["network"], tuple(request["patch"]))
    opened = session(request["engine"], model, request["threads"])
    shape = (1, model.task.model.in_channels, *model.task.inference.patch)
    return opened, np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


if __name__ == "__main__":
    answer(_open)
