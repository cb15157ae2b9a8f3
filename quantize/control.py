"""Accuracy control: as few layers in float as the gate asks for.

Layers are given back in the order of their price, error for gain. How many are needed is found by doubling and then
halving, so that a dozen trials do for a hundred layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mednext_edge.task import Frozen


class Trial(Frozen):
    """One choice of layers, and what it came to.

    Attributes:
        float_layers: how many layers stayed in float, the first ones of the order.
        drop: mean drop of the metric against FP32.
        upper: upper end of its 95 % interval; None with too few cases for one.
        worst_case: largest drop of one class in one case.
        passed: whether the limits hold.
    """

    float_layers: int
    drop: float
    upper: float | None
    worst_case: float | None = None
    passed: bool

    @property
    def decisive(self) -> float:
        """What the gate is decided on."""
        return self.drop if self.upper is None else self.upper


def control(
    order: Sequence[str], attempt: Callable[[Sequence[str]], Trial], *, more: Callable[[], bool] = lambda: True
) -> tuple[list[str], list[Trial]]:
    """The shortest beginning of an order that passes when it is given back to float.

    A longer beginning is taken to be no worse than a shorter one.

    Args:
        order: names of layers, the most expensive first.
        attempt: measures the network with these layers in float.
        more: asked before every trial but the first; False ends the search with the best choice until then.

    Returns:
        The layers to keep in float, and every trial: of those that passed the one with the fewest layers in float,
        else the one with the smallest drop.
    """
    trials: dict[int, Trial] = {}

    def passes(count: int) -> bool:
        trials[count] = attempt(order[:count])
        return trials[count].passed

    # `short` fails, `long` is to pass.
    short, long = -1, 0
    while not passes(long) and long < len(order) and more():
        short, long = long, min(max(1, 2 * long), len(order))
    while trials[long].passed and long - short > 1 and more():
        middle = (short + long) // 2
        short, long = (short, middle) if passes(middle) else (middle, long)
    passed = [count for count, trial in trials.items() if trial.passed]
    best = min(passed) if passed else min(trials, key=lambda count: trials[count].decisive)
    return list(order[:best]), list(trials.values())
