"""A cohort on a Ray cluster: one replica of the engine on each node, cases handed out as replicas become free.

Built on Ray Data, which starts a lost replica again elsewhere and gives its cases to the others; a case that is done
twice leaves the same label map. All nodes need this package and see the images, the bundle and the output folder under
the same paths.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from mednext_edge.data.dataset import Case
from mednext_edge.errors import MednextEdgeError, TargetUnavailableError
from mednext_edge.optional import require
from mednext_edge.runtime.session import Session
from mednext_edge.serving.cohort import CaseResult, CaseRunner, Settings
from mednext_edge.task import Frozen

LOCAL = "local"
"""The address of a cluster that is started on this machine, for this run alone."""

_BLOCK_BYTES = 2**20
_HOST_PORT = re.compile(r"(ray://)?\[?(?P<host>[^/\[\]]+?)\]?:(?P<port>[0-9]+)")
_REACH_S = 10


class Entry(Frozen):
    """One line of the ledger: when a case ended, and how."""

    time: str
    result: CaseResult


class Replica:
    """An open engine on one node; Ray makes one in a process of its own."""

    def __init__(self, open_session: Callable[[], Session], settings: Settings, cases: Sequence[Case]) -> None:
        self._runner = CaseRunner(open_session(), settings)
        self._cases = cases

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        return {"result": [self._run(self._cases[int(number)]).model_dump_json() for number in batch["case"]]}

    def _run(self, case: Case) -> CaseResult:
        try:
            return self._runner.run(case)
        except MednextEdgeError as error:  # an exception would end the whole run on the driver
            return CaseResult(case=case.name, error=str(error))


def run_on_ray(
    address: str, open_session: Callable[[int], Session], settings: Settings, cases: Sequence[Case], ledger: Path
) -> Iterator[CaseResult]:
    """Segment cases on a cluster, and yield each result as it comes.

    Args:
        address: of the cluster as `ray.init` takes it, such as `auto`, `HOST:6379`, `ray://HOST:10001`, or `local`.
        open_session: the engine with so many CPU threads; called once on each replica.
        settings: of all cases; the output folder is there.
        cases: what to segment.
        ledger: JSON-lines file that gets an `Entry` a case, on the disk before the result is yielded.

    Raises:
        TargetUnavailableError: Ray is not installed, or there is no such cluster or no free node in it.
    """
    with _cluster(address) as ray:
        replicas, cpus = _room(ray)
        data: Any = require("ray.data", "ray")
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        # Results are a line each; Ray sets memory aside by this, and starts nothing where it finds too little.
        context.target_max_block_size = _BLOCK_BYTES
        rows = data.from_items([{"case": i} for i in range(len(cases))], override_num_blocks=len(cases))
        results = rows.map_batches(
            Replica,
            fn_constructor_args=(partial(open_session, cpus), settings, tuple(cases)),
            batch_size=1,
            num_cpus=cpus,
            compute=data.ActorPoolStrategy(size=min(replicas, len(cases)), max_tasks_in_flight_per_actor=2),
        )
        with ledger.open("a") as file:
            for row in results.iter_rows():
                result = CaseResult.model_validate_json(row["result"])
                entry = Entry(time=datetime.now(UTC).isoformat(timespec="seconds"), result=result)
                file.write(entry.model_dump_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
                yield result


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    _reach(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report the run to its makers
    ray = require("ray", "ray")
    started = not ray.is_initialized()
    try:
        if started:
            dashboard = False if address == LOCAL else None
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=dashboard)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise TargetUnavailableError(f"found no Ray cluster at `{address}`: {error}") from error
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


def _reach(address: str) -> None:
    """Ray would try for two minutes, with words of its own, where nobody listens at HOST:PORT."""
    found = _HOST_PORT.fullmatch(address)
    if found is None:
        return
    try:
        socket.create_connection((found["host"], int(found["port"])), _REACH_S).close()
    except (OSError, OverflowError) as error:
        raise TargetUnavailableError(
            f"found no Ray cluster at `{address}`: {error}; expected the address that `ray start --head` told"
        ) from error


def _room(ray: Any) -> tuple[int, int]:
    """How many replicas, one a node with processors, and the processors that each may use."""
    counts = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    counts = [count for count in counts if count]
    if not counts:
        raise TargetUnavailableError("the Ray cluster has no node with processors; start workers with `ray start`")
    return len(counts), min(counts)
