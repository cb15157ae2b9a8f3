"""What speaks against images to calibrate on: said in the report, since INT8 works all the same, only worse."""

from __future__ import annotations

import numpy as np

from mednext_edge.data.recipe import Prepared
from mednext_edge.errors import DataError
from mednext_edge.task import Task

FEW = 8
"""Cases below which one image has much weight."""
CLIPPED = 0.9
"""Part of the voxels at the ends of the recipe's range that images of its own modality do not reach."""


class Suitability:
    """Looks at calibration cases one by one.

    Args:
        task: of the network.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._cases = 0
        self._constant: list[str] = []
        self._clipped: list[str] = []
        self._labelled = False
        self._values: set[int] = set()

    def see(self, case: str, prepared: Prepared) -> None:
        """Take one case.

        Raises:
            DataError: its image is not finite.
        """
        image = prepared.image
        if not np.isfinite(image).all():
            raise DataError(f"calibration case {case} holds voxels that are not finite; repair it or leave it out")
        self._cases += 1
        if self._outside(prepared) > CLIPPED:
            self._clipped.append(case)
        elif all(float(channel.min()) == float(channel.max()) for channel in image):
            self._constant.append(case)
        if prepared.labels is not None:
            self._labelled = True
            self._values.update(int(value) for value in np.unique(prepared.labels))

    def _outside(self, prepared: Prepared) -> float:
        """Part of the voxels that lie at an end of the range which the recipe clips to, in the worst channel."""
        parts = [0.0]
        for channel, entry in zip(prepared.image, self._task.preprocessing.normalization, strict=True):
            if entry.scheme == "ct":
                low, high = ((bound - entry.mean) / max(entry.sd, 1e-8) for bound in (entry.lower, entry.upper))
                margin = 1e-3 * (high - low) if np.isfinite(high - low) else 0.0
                parts.append(float(((channel <= low + margin) | (channel >= high - margin)).mean()))
        return max(parts)

    def notes(self) -> tuple[str, ...]:
        """What was found, a sentence each; none is the best."""
        found = []
        if self._cases < FEW:
            cases = "1 case" if self._cases == 1 else f"{self._cases} cases"
            found.append(f"INT8 was calibrated on {cases}; {FEW} or more show how images differ")
        if self._constant:
            found.append(f"the calibration images {_some(self._constant)} hold one value only and say nothing")
        if self._clipped:
            found.append(
                f"of the calibration images {_some(self._clipped)} more than {CLIPPED:.0%} lies outside the "
                "intensities that the network was trained for; they may be of another modality or unit"
            )
        missing = [name for name, value in self._task.labels.items() if value and value not in self._values]
        if self._labelled and missing:
            found.append(f"no calibration case has {_some(missing)}, which the ranges then know nothing of")
        return tuple(found)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
