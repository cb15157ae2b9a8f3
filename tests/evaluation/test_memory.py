from __future__ import annotations

import time

import numpy as np

from mednext_edge.evaluation.memory import INTERVAL_S, PeakMemory


def test_peak_that_is_gone_at_the_end() -> None:
    idle, busy = PeakMemory(), PeakMemory()
    with idle:
        pass
    with busy:
        held = np.ones(40_000_000)  # 320 MB
        time.sleep(10 * INTERVAL_S)
        del held
    with busy:
        pass
    assert idle.mb > 10
    assert busy.mb > idle.mb + 250, "the second, idle block must not hide the first one's peak"
