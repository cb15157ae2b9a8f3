"""The number of threads that was measured to be best for a bundle's engine, on the machine where that was."""

from __future__ import annotations

import functools
import json
import logging
from pathlib import Path

from mednext_edge.cache import Keyed
from mednext_edge.environment import environment, machine_digest
from mednext_edge.errors import IntegrityError
from mednext_edge.task import Frozen

TUNING = "tuning.json"
_LOG = logging.getLogger(__name__)


class ThreadCount(Frozen):
    """One number of threads against another, timed in turns.

    Attributes:
        threads: the number.
        against: the best one until then.
        ratio: time with `threads` over that with `against`, with its interval; None when there was no time to measure.
        p50_ms, against_ms: medians of either in these turns.
        pairs: of timings.
    """

    threads: int
    against: int | None = None
    ratio: tuple[float, float, float] | None = None
    p50_ms: float | None = None
    against_ms: float | None = None
    pairs: int = 0


class ThreadTuning(Keyed):
    """How many threads one patch is fastest with.

    Attributes:
        machine: digest of the machine alone (`environment.machine_digest`).
        patch: spatial size that was timed.
        own: what the engine takes by itself.
        chosen: None where none was faster than that.
        counts: the others, in the order in which they were timed.
        seconds: that it took.
    """

    machine: str
    patch: tuple[int, ...]
    own: int
    chosen: int | None
    counts: tuple[ThreadCount, ...]
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether every number was measured."""
        return all(count.ratio is not None for count in self.counts)


def recorded_threads(folder: Path, patch: tuple[int, ...]) -> int | None:
    """What the tuning of a bundle found for this machine and patch; None leaves the choice to the engine.

    Args:
        folder: of the bundle, its digests checked.
        patch: that the engine is to run at.

    Raises:
        IntegrityError: a `tuning.json` that is none.
    """
    try:
        stated = json.loads((folder / TUNING).read_bytes())
        section = stated.get("threads")
        found = None if section is None else ThreadTuning.model_validate(section)
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError) as error:  # pydantic's are of the first kind; a list has no sections
        reason = str(error).splitlines()[0]
        raise IntegrityError(f"{folder / TUNING} cannot be read ({reason}); export again") from error
    if found is None or found.chosen is None:
        return None
    if found.machine != machine_digest(environment()):
        _tell(f"{folder / TUNING}: its {found.chosen} threads were measured on another machine; the engine chooses")
        return None
    if found.patch != patch:
        _tell(f"{folder / TUNING}: its {found.chosen} threads were measured at {found.patch}; the engine chooses")
        return None
    return found.chosen


@functools.cache  # a service opens its bundle again and again
def _tell(words: str) -> None:
    _LOG.warning(words)
