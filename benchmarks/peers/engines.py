"""The engines of the comparison, each a session on one network: what users have today, and ours.

INT8 calibrates on noise: ranges decide what a network answers, not how long it takes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import mednext_edge as mx
from mednext_edge.cpu import features
from mednext_edge.errors import TargetUnavailableError
from mednext_edge.export.graph import to_onnx
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.optional import require
from mednext_edge.quantize.calibration import CalibrationSet
from mednext_edge.registry import Registry
from mednext_edge.runtime.onnx_session import OnnxSession
from mednext_edge.runtime.openvino_session import OpenVinoSession
from mednext_edge.runtime.session import Session
from mednext_edge.runtime.stock import stock_model
from mednext_edge.runtime.torch_session import TorchSession

BF16 = {"avx512_bf16", "amx_bf16"}
PATCHES = 2


@dataclass(frozen=True)
class Engine:
    """One way to run a network: the precision of its products, whether it is ours, and how it is opened."""

    precision: str
    ours: bool
    open: Callable[[LoadedModel, int | None], Session]


ENGINES: Registry[Engine] = Registry("engine")


def session(name: str, model: LoadedModel, threads: int | None = None) -> Session:
    """A network in an engine of the table.

    Raises:
        TargetUnavailableError: this processor computes no bfloat16, or a package is missing.
    """
    engine = ENGINES[name]
    if engine.precision == "bf16" and not BF16 & set(features()):
        raise TargetUnavailableError("this processor has no bfloat16 products; OpenVINO would compute in FP32")
    return engine.open(model, threads)


def noise(model: LoadedModel) -> CalibrationSet:
    """Patches to calibrate on where only time is of interest."""
    rng = np.random.default_rng(0)
    shape = (1, model.task.model.in_channels, *model.task.inference.patch)
    patches = tuple(rng.standard_normal(shape, dtype=np.float32) for _ in range(PATCHES))
    return CalibrationSet(patches=patches, cases=("noise",) * PATCHES, sha256="0" * 64, foreground=PATCHES)


def _eager(model: LoadedModel, threads: int | None) -> Session:
    return TorchSession.of(model, threads=threads)


def _compiled(model: LoadedModel, threads: int | None) -> Session:
    return TorchSession(torch.compile(model.net), model.task, threads=threads)  # type: ignore[arg-type]


def _onnxruntime(model: LoadedModel, threads: int | None) -> Session:
    graph = to_onnx(model, model.task.inference.patch)
    return OnnxSession(graph.SerializeToString(), model.task, "fp32", threads=threads)


def _stock(precision: str) -> Callable[[LoadedModel, int | None], Session]:
    def opened(model: LoadedModel, threads: int | None) -> Session:
        stock = stock_model(model.task, model.task.inference.patch, net=model.net)
        return OpenVinoSession(stock, model.task, precision, threads=threads)

    return opened


def _stock_nncf(model: LoadedModel, threads: int | None) -> Session:
    nncf = require("nncf", "peers")
    stock = stock_model(model.task, model.task.inference.patch, net=model.net)
    with redirect_stdout(sys.stderr):
        made = nncf.quantize(stock, nncf.Dataset(noise(model).patches, lambda patch: [patch]), subset_size=PATCHES)
    return OpenVinoSession(made, model.task, "int8", threads=threads)


def _ours(precision: str) -> Callable[[LoadedModel, int | None], Session]:
    def opened(model: LoadedModel, threads: int | None) -> Session:
        with tempfile.TemporaryDirectory() as folder:
            given = noise(model) if precision == "int8" else None
            out = mx.export(
                model, target="openvino", precision=precision, calibration=given, out=Path(folder) / "bundle"
            )
            return mx.open(out, threads=threads)

    return opened


ENGINES.add("torch eager", Engine("fp32", False, _eager))
ENGINES.add("torch.compile", Engine("fp32", False, _compiled))
ENGINES.add("onnxruntime", Engine("fp32", False, _onnxruntime))
ENGINES.add("stock openvino fp32", Engine("fp32", False, _stock("fp32")))
ENGINES.add("stock openvino bf16", Engine("bf16", False, _stock("bf16")))
ENGINES.add("stock nncf int8", Engine("int8", False, _stock_nncf))
ENGINES.add("ours fp32", Engine("fp32", True, _ours("fp32")))
ENGINES.add("ours bf16", Engine("bf16", True, _ours("bf16")))
ENGINES.add("ours int8", Engine("int8", True, _ours("int8")))
