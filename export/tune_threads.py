"""How many CPU threads the finished engine is fastest with, at its real patch.

One patch is one inference, which several streams could not share: the engine runs one stream (its latency mode), and
what is left to choose is how many threads that has. The engine's own number, one thread a physical core as a rule, is
challenged by the other powers of two, by the physical and by the logical cores; two engines at a time are in memory.

What keeps cores busy meanwhile is measured too: on two cores with other work, one thread took a third of the time of
two, which wait for each other. So a machine is tuned as it will be used.
"""

from __future__ import annotations

from dataclasses import replace

from mednext_edge.environment import Environment, environment, machine_digest
from mednext_edge.errors import ExportError
from mednext_edge.evaluation.regression import Rules
from mednext_edge.export.targets import Job, Progress, Target
from mednext_edge.export.tune_cache import TuningCache, graph_digest, key_of
from mednext_edge.export.tune_part import noise
from mednext_edge.export.tune_race import LOOK, Race, Watch, faster, race
from mednext_edge.runtime.threads import ThreadCount, ThreadTuning

RULES = Rules(gate=0.03, first=8, looks=5)
"""Another number has to be faster by this much than what the engine takes by itself."""


def tune_threads(
    entry: Target, job: Job, *, seconds: float, progress: Progress, cache: TuningCache, watch: Watch
) -> ThreadTuning:
    """The number of threads for one engine.

    Args:
        entry: of a target whose trials follow `Job.threads`.
        job: with the graph as it is written.
        seconds: to measure for; what was measured before on this machine takes none.

    Raises:
        ExportError: the engine does not tell how many threads it takes by itself.
    """
    key = key_of(entry.package, step="threads", graph=graph_digest(job.graph), for_=(job.precision, job.patch))
    kept = cache.load(ThreadTuning, key)
    if kept is not None:
        return kept
    start, here = watch.clock(), environment()
    best = entry.trial(job)
    try:
        own = best.used_threads
        if own is None:
            raise ExportError(f"{best.provider} does not tell how many threads it takes; export without --tune")
        x = noise(job.model.task.model.in_channels, job.patch)
        taken, counts = own, list[ThreadCount]()
        wanted = thread_counts(here, own)
        for index, threads in enumerate(wanted):
            progress("tune threads", index, len(wanted))
            if watch.clock() - start >= seconds:
                counts.append(ThreadCount(threads=threads))
                continue
            challenger = entry.trial(replace(job, threads=threads))
            now = watch.clock()
            until = now + max((start + seconds - now) / (len(wanted) - index), LOOK)
            found = race(challenger, best, x, RULES, faster, until=until, watch=watch)
            counts.append(_count(threads, taken, found))
            if found is not None and found.verdict == "passed":
                best, challenger, taken = challenger, best, threads
            challenger.close()
        progress("tune threads", len(wanted), len(wanted))
    finally:
        best.close()
    tuning = ThreadTuning(
        key=key,
        machine=machine_digest(here),
        patch=job.patch,
        own=own,
        chosen=None if taken == own else taken,
        counts=tuple(counts),
        seconds=watch.clock() - start,
    )
    if tuning.complete:
        cache.save(tuning)
    return tuning


def thread_counts(here: Environment, own: int) -> tuple[int, ...]:
    """The numbers to challenge the engine's own with, from many to few."""
    usable = here.usable_cores
    counts = {2**n for n in range(usable.bit_length())} | {here.physical_cores or usable, usable}
    return tuple(sorted((n for n in counts if n <= usable and n != own), reverse=True))


def _count(threads: int, against: int, found: Race | None) -> ThreadCount:
    if found is None:
        return ThreadCount(threads=threads, against=against)
    return ThreadCount(
        threads=threads,
        against=against,
        ratio=found.ratio,
        p50_ms=found.this_ms,
        against_ms=found.reference_ms,
        pairs=found.pairs,
    )
