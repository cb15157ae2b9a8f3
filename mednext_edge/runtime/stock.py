"""The unmodified network as OpenVINO itself converts it: what a speed-up is measured against."""

from __future__ import annotations

from collections.abc import Sequence

import openvino as ov
import torch

from mednext_edge.models.families import build
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.runtime.openvino_session import OpenVinoSession
from mednext_edge.task import Task


def stock_session(task: Task, patch: Sequence[int], *, threads: int | None = None) -> OpenVinoSession:
    """A task's network in its training form, converted by `openvino.convert_model`, run in FP32 on the CPU.

    Its weights are random: they decide what it answers, not how long it takes.

    Args:
        patch: spatial size it is converted for.
        threads: CPU threads; None lets OpenVINO choose.
    """
    net = build(task.model).eval()
    if isinstance(net, MedNeXt):
        net.do_ds = False
    shape = [1, task.model.in_channels, *patch]
    with torch.no_grad():
        model = ov.convert_model(net, example_input=torch.zeros(shape), input=[shape])
    return OpenVinoSession(model, task, "fp32", threads=threads)
