"""What an exact rewrite is.

A rewrite changes a network in place into a cheaper one that computes the same function of its input;
it is proven in float64 to 1e-10 relative on every network of the registry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Rewrite:
    """One exact rewrite.

    Attributes:
        apply: changes the network in place, returns how many places it changed.
        summary: what it does, in one line.
        optional: applied only when asked for by name; which form is faster depends on the machine.
    """

    apply: Callable[[nn.Module], int]
    summary: str
    optional: bool = False
