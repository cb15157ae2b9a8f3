"""What became of everything that was sent, and whether the service grew meanwhile."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np

RIGHT, WRONG, LOST, DOUBLED, FAILED = "right", "wrong", "lost", "doubled", "failed"
OUTCOMES = (RIGHT, WRONG, LOST, DOUBLED, FAILED)
WARM = 30
"""Answers until the allocator and the engine hold what they keep."""
WINDOW = 20
"""Answers over which the resident memory is averaged, at either end."""
LEAST = WARM + 2 * WINDOW
PARTS = 10


@dataclass(frozen=True)
class ServingSoak:
    """A soak.

    Attributes:
        outcomes: how many ended in which way.
        failures: of those that failed, how many for which reason.
        slowest_s: from a question to its answer.
        start_mb, end_mb, highest_mb: resident memory of the service, 1e6 bytes.
        course_mb: its mean in each tenth of the answers after the warm-up, which tells a plateau from a slope.
    """

    outcomes: dict[str, int]
    failures: dict[str, int]
    slowest_s: float
    start_mb: float
    end_mb: float
    highest_mb: float
    course_mb: tuple[float, ...]

    @property
    def growth_mb(self) -> float:
        return self.end_mb - self.start_mb


def judge(answers: Sequence[bytes], expected: bytes) -> str:
    """One outcome for the answers to one question: exactly one, and that one, is right."""
    if not answers:
        return LOST
    if len(answers) > 1:
        return DOUBLED
    return RIGHT if answers[0] == expected else WRONG


def references(found: Sequence[Sequence[bytes]]) -> list[bytes]:
    """The one answer to each question, as given while nothing else was asked.

    Raises:
        RuntimeError: a question has no answer or several, or two have the same, so that mix-ups would not be seen.
    """
    single = [answers[0] for answers in found if len(answers) == 1]
    if len(set(single)) != len(found):
        raise RuntimeError(f"found {len(set(single))} different answers to {len(found)} questions before the soak")
    return single


def soak(
    send: Callable[[int], str],
    count: int,
    at_once: int,
    resident_mb: Callable[[], float],
    progress: Callable[[int, int], None],
) -> ServingSoak:
    """Call `send(0)` to `send(count - 1)`, so many at once, each of which says its outcome.

    A broken connection and a refusal, which it raises, count as failed.

    Args:
        count: at least `LEAST`.
        resident_mb: of the service; asked after every answer.
    """
    if count < LEAST:
        raise ValueError(f"found {count} to send; expected {LEAST} or more, of which the first {WARM} are a warm-up")

    failures: Counter[str] = Counter()

    def attempt(number: int) -> tuple[str, float]:
        start = time.perf_counter()
        try:
            outcome = send(number)
        except (OSError, EOFError, ValueError) as error:
            failures[f"{type(error).__name__}: {error}"] += 1
            outcome = FAILED
        return outcome, time.perf_counter() - start

    outcomes = Counter(dict.fromkeys(OUTCOMES, 0))
    held: list[float] = []
    slowest = 0.0
    with ThreadPoolExecutor(at_once) as pool:
        for done in as_completed([pool.submit(attempt, number) for number in range(count)]):
            outcome, seconds = done.result()
            outcomes[outcome] += 1
            slowest = max(slowest, seconds)
            held.append(resident_mb())
            progress(len(held), count)
    return ServingSoak(dict(outcomes), dict(failures), slowest, *memory(held))


def memory(held: Iterable[float]) -> tuple[float, float, float, tuple[float, ...]]:
    """Mean after the warm-up, mean at the end, the most in between, and the means of the tenths."""
    warm = list(held)[WARM:]
    course = tuple(round(float(np.mean(part)), 2) for part in np.array_split(warm, PARTS))
    return float(np.mean(warm[:WINDOW])), float(np.mean(warm[-WINDOW:])), max(warm), course
