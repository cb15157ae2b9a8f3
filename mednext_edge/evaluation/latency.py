"""How long one patch takes, for several engines under the same conditions.

Clocks, caches and neighbours change from one second to the next, so engines are never timed one
after the other: every round runs each of them once, in random order, on the same patch. What is
compared are the pairs of a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mednext_edge.errors import UsageError
from mednext_edge.evaluation.ratios import Ratio, median_ratio
from mednext_edge.evaluation.report import Latency
from mednext_edge.runtime.session import Array, Session


def measure(
    sessions: Mapping[str, Session],
    patch: Sequence[int],
    *,
    rounds: int = 50,
    warmup: int = 3,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Latency]:
    """Time each session on patches of standard normal noise, one patch a call.

    The first call of each session is reported apart (`first_ms`: allocation and just-in-time
    compilation); it and `warmup` further calls are no part of the percentiles.

    Args:
        sessions: by name; all take the same number of channels.
        patch: spatial size.
        rounds: timed calls of each session, at least 1.
        progress: told after every round.

    Raises:
        UsageError: no session, or fewer than one round.
        DataError: a session that does not take such a patch.
    """
    if not sessions or rounds < 1 or warmup < 0:
        raise UsageError(f"found {len(sessions)} engines, {rounds} rounds, {warmup} warm-up calls; expected 1, 1, 0")
    generator = np.random.default_rng(seed)
    channels = next(iter(sessions.values())).task.model.in_channels
    shape = (1, channels, *patch)
    names = list(sessions)
    x = generator.standard_normal(shape, dtype=np.float32)
    first = {name: _time(sessions[name], x) for name in names}
    for _ in range(warmup):
        for name in names:
            sessions[name].run(x)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        x = generator.standard_normal(shape, dtype=np.float32)
        for which in generator.permutation(len(names)):
            name = names[which]
            taken[name].append(_time(sessions[name], x))
        if progress is not None:
            progress("measure", index + 1, rounds)
    return {name: _latency(tuple(patch), sessions[name], first[name], taken[name]) for name in names}


def ratio(slow: Latency, fast: Latency, *, seed: int = 0) -> Ratio:
    """How many times as long `slow` takes as `fast`: the median over rounds of their log ratio, undone.

    Both are of one call of `measure`.

    Raises:
        ValueError: they have different numbers of rounds.
    """
    if len(slow.rounds_ms) != len(fast.rounds_ms):
        raise ValueError(f"found {len(slow.rounds_ms)} and {len(fast.rounds_ms)} rounds; expected those of one run")
    return median_ratio(np.log(slow.rounds_ms) - np.log(fast.rounds_ms), seed=seed)


def _time(session: Session, x: Array) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    session.run(x)
    return (time.perf_counter() - start) * 1e3


def _latency(patch: tuple[int, ...], session: Session, first: float, taken: Sequence[float]) -> Latency:
    p50, p90, p99 = (float(p) for p in np.percentile(taken, [50, 90, 99]))
    return Latency(
        patch=patch,
        threads=session.threads,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        first_ms=first,
        patches_per_s=1e3 / p50,
        rounds_ms=tuple(taken),
    )
