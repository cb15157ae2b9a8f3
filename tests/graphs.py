"""ONNX graphs of networks, each exported once for all tests and processes of a run: tracing takes most of an export."""

from __future__ import annotations

import hashlib
import io
import pickle
from typing import Any

import onnx
import pytest
import torch

from mednext_edge.export import graph
from mednext_edge.models.loaded import LoadedModel
from tests.once import once


class _Pickler(pickle.Pickler):
    """The same bytes for the same network in every process."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor):
            values = obj.detach().cpu().contiguous().view(torch.uint8) if obj.ndim else obj.detach().cpu()
            return str, (f"{obj.dtype} {tuple(obj.shape)} {obj.requires_grad}", values.numpy().tobytes())
        return NotImplemented


def _key(model: LoadedModel, *options: object) -> str | None:
    """A digest of everything that an export depends on: code's attributes, weights, task, options; None if unknown."""
    stream = io.BytesIO()
    try:
        _Pickler(stream).dump((model.net, model.task.model_dump_json(), options))
    except (pickle.PicklingError, AttributeError, TypeError):  # a hook or a function of its own
        return None
    return hashlib.sha256(stream.getvalue()).hexdigest()[:16]


def export_once(factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the same network with the same options answer with the graph of the first.

    Tests of the graph itself import `to_onnx` by its name, and so keep the original.
    """
    original, exporter = graph.to_onnx, torch.onnx.export

    def to_onnx(
        model: LoadedModel, patch: tuple[int, ...], *, dynamic: bool = False, half: bool = False
    ) -> onnx.ModelProto:
        key = _key(model, tuple(patch), dynamic, half)
        if key is None or torch.onnx.export is not exporter:  # a test has put something in its place
            return original(model, patch, dynamic=dynamic, half=half)
        made = once(
            factory,
            f"graph-{key}",
            lambda folder: onnx.save(original(model, patch, dynamic=dynamic, half=half), folder / "model.onnx"),
        )
        return onnx.load(made / "model.onnx")

    monkeypatch.setattr(graph, "to_onnx", to_onnx)
