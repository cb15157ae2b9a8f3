"""Which cases validate: at random, or by ranges of numbers where neighbours are of one patient."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from mednext_edge.task import Frozen


class Split(Frozen):
    """How to hold back cases for validation.

    Attributes:
        by: `random` draws them; `range` takes the last ones in the order of the numbers in their names, so that slices
            of one patient, which are numbered one after the other, stay together.
        validation: their share.
        seed: of the draw.
    """

    by: Literal["random", "range"] = "random"
    validation: float = Field(default=0.2, gt=0, lt=1)
    seed: int = 0

    def held_back(self, names: Sequence[str]) -> set[str]:
        """Some of the names, at least one and never all; none of a single name."""
        ordered = natural(names)
        if len(ordered) < 2:
            return set()
        count = min(len(ordered) - 1, max(1, round(self.validation * len(ordered))))
        if self.by == "range":
            return set(ordered[-count:])
        drawn = np.random.default_rng(self.seed).permutation(len(ordered))[:count]
        return {ordered[int(i)] for i in drawn}


def natural(names: Iterable[str]) -> list[str]:
    """Names in the order of the numbers in them: `case 2` before `case 10`."""

    def key(name: str) -> list[tuple[float, str]]:
        return [(float(part), "") if part.isdecimal() else (math.inf, part) for part in re.split(r"(\d+)", name)]

    return sorted(names, key=key)
