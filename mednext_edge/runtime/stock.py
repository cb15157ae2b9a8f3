"""The unmodified network as OpenVINO itself converts it: what a speed-up is measured against."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import openvino as ov
import torch
from torch import nn

from mednext_edge.models.families import build, for_inference
from mednext_edge.runtime.openvino_session import OpenVinoSession
from mednext_edge.task import Task


def stock_session(
    task: Task, patch: Sequence[int], *, net: nn.Module | None = None, threads: int | None = None
) -> OpenVinoSession:
    """A task's network in its training form, converted by `openvino.convert_model`, run in FP32 on the CPU.

    Args:
        patch: spatial size it is converted for.
        net: in its training form; None takes random weights, which decide what it answers, not how long it takes.
        threads: CPU threads; None lets OpenVINO choose.
    """
    return OpenVinoSession(stock_model(task, patch, net=net), task, "fp32", threads=threads)


def stock_model(task: Task, patch: Sequence[int], *, net: nn.Module | None = None) -> ov.Model:
    """The same, not yet compiled."""
    net = for_inference(build(task.model) if net is None else net)
    shape = [1, task.model.in_channels, *patch]
    with torch.no_grad(), warnings.catch_warnings():
        # The tracer warns that the shape checks inside PyTorch's norms become constants, as they should.
        warnings.simplefilter("ignore")
        return ov.convert_model(net, example_input=torch.zeros(shape), input=[shape])
