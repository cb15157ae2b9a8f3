"""What an export is measured against: the network as it was given, in FP32."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np

from mednext_edge.errors import ExportError
from mednext_edge.models.families import FAMILIES, for_inference
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.runtime.session import Session
from mednext_edge.runtime.torch_session import TorchSession

# FP32 sums of another order differ by some 1e-5 of the largest logit after a hundred layers.
TOLERANCE = 1e-3


def baseline_session(model: LoadedModel, patch: tuple[int, ...]) -> Session:
    """The unmodified network in FP32.

    ONNX Runtime computes it about twice as fast as PyTorch on a CPU, and takes part when its graph gives PyTorch's
    logits for a small patch of noise; else PyTorch itself runs. The session's `provider` says which.

    Args:
        model: in training form or fused.
        patch: spatial size.
    """
    from mednext_edge.export.graph import fix_size, to_onnx
    from mednext_edge.runtime.onnx_session import OnnxSession

    torch_session = TorchSession.of(model)
    net = for_inference(copy.deepcopy(model.net))
    spec = model.task.model
    any_size = FAMILIES[spec.family].any_size(spec)
    small = tuple(min(n, 2 * FAMILIES[spec.family].divisor(spec)) for n in patch) if any_size else patch
    x = np.random.default_rng(0).normal(size=(1, spec.in_channels, *small)).astype(np.float32)
    expected = torch_session.run(x)
    torch_session.patch = patch
    try:
        graph = to_onnx(replace(model, net=net), patch, dynamic=any_size)
        with OnnxSession(fix_size(graph, small).SerializeToString(), model.task, "fp32") as trial:
            found = trial.run(x)
        if not np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max():
            return torch_session
        fast = OnnxSession(fix_size(graph, patch).SerializeToString(), model.task, "fp32")
    except (ExportError, ValueError):  # ValueError: over 2 GB, which is no protobuf
        return torch_session
    torch_session.close()
    return fast
