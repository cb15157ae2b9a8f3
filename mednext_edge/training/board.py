"""The log of a run for TensorBoard, from the run folder's own log: what a kill undid is not in it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mednext_edge.errors import TargetUnavailableError

FOLDER = "tensorboard"


class Board:
    """Writes scalars of every epoch; `tensorboard --logdir RUN` shows them.

    Args:
        run: the run folder.
        history: the epochs that are there already, which are written anew.

    Raises:
        TargetUnavailableError: the package tensorboard is not installed.
    """

    def __init__(self, run: Path, history: Sequence[Mapping[str, Any]]) -> None:
        check_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(run / FOLDER, ignore_errors=True)
        self._writer = SummaryWriter(str(run / FOLDER))
        for entry in history:
            self.epoch(entry)

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """One line of the run's log; values that are missing or NaN leave no point."""
        per_class = {f"dice/{name}": value for name, value in (entry.get("dice_per_class") or {}).items()}
        per_class |= {f"sensitivity/{n}": value for n, value in (entry.get("sensitivity_per_class") or {}).items()}
        names = {"loss": "loss", "rate": "learning rate", "dice": "dice/mean", "balanced_accuracy": "balanced accuracy"}
        names |= {"memory_mb": "peak memory, MB"}
        scalars = {title: entry.get(name) for name, title in names.items()} | per_class
        for title, value in scalars.items():
            if value is not None and math.isfinite(value):
                self._writer.add_scalar(title, value, entry["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def check_tensorboard() -> None:
    """That the package is here.

    Raises:
        TargetUnavailableError: it is not.
    """
    from importlib.util import find_spec

    if find_spec("tensorboard") is None:
        raise TargetUnavailableError(
            "the package tensorboard is not installed; pip install mednext-edge[tensorboard], or leave out "
            "--tensorboard"
        )
