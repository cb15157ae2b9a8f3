"""The engines of the comparison, each a session on one network: what users have today, and ours.

An engine is prepared (converted, calibrated, written to a folder) and opened apart, so that the process that is timed
has held nothing else. INT8 calibrates on noise: ranges decide what a network answers, not how long it takes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from torch import nn

import mednext_edge as mx
from mednext_edge.cpu import features
from mednext_edge.errors import TargetUnavailableError
from mednext_edge.export.export import takes_any_size
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
from mednext_edge.task import Task

BF16 = {"avx512_bf16", "amx_bf16"}
PATCHES = 2
NNCF_SIDE = 64
"""NNCF holds every activation of a patch at once: 29 GB for MedNeXt-S at 128^3."""

Model = Callable[[], LoadedModel]
"""Makes the network; an engine that does not need it again does not hold it."""
TASK, ONNX, IR, BUNDLE = "task.json", "model.onnx", "model.xml", "bundle"


@dataclass(frozen=True)
class Engine:
    """One way to run a network.

    Attributes:
        precision: of its products.
        ours: not one of the peers.
        prepare: writes what `open` reads into a folder.
        open: a session, with so many threads.
    """

    precision: str
    ours: bool
    prepare: Callable[[LoadedModel, Path], None]
    open: Callable[[Path, Model, int | None], Session]


ENGINES: Registry[Engine] = Registry("engine")


def prepare(name: str, model: LoadedModel, folder: Path) -> None:
    """Write what an engine of the table needs of a network.

    Raises:
        TargetUnavailableError: this processor computes no bfloat16, or a package is missing.
    """
    if ENGINES[name].precision.endswith("bf16") and not BF16 & set(features()):
        raise TargetUnavailableError("this processor has no bfloat16 products; OpenVINO would compute in FP32")
    folder.mkdir(parents=True)
    (folder / TASK).write_text(model.task.model_dump_json())
    ENGINES[name].prepare(model, folder)


def session(name: str, model: LoadedModel, threads: int | None = None) -> Session:
    """A network in an engine of the table, prepared here and now; errors as of `prepare`."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(name, model, Path(folder) / "engine")
        return ENGINES[name].open(Path(folder) / "engine", lambda: model, threads)


def noise(model: LoadedModel, patch: tuple[int, ...]) -> CalibrationSet:
    """Patches to calibrate on where only time is of interest."""
    rng = np.random.default_rng(0)
    shape = (1, model.task.model.in_channels, *patch)
    patches = tuple(rng.standard_normal(shape, dtype=np.float32) for _ in range(PATCHES))
    return CalibrationSet(patches=patches, cases=("noise",) * PATCHES, sha256="0" * 64, foreground=PATCHES)


def _nothing(model: LoadedModel, folder: Path) -> None:
    """PyTorch takes the network as it is."""


def _torch(change: Callable[[nn.Module], nn.Module]) -> Callable[[Path, Model, int | None], Session]:
    def opened(folder: Path, model: Model, threads: int | None) -> Session:
        made = model()
        return TorchSession(change(made.net.eval()), made.task, threads=threads)

    return opened


def _channels_last(net: nn.Module) -> nn.Module:
    order = torch.channels_last_3d if any(p.ndim == 5 for p in net.parameters()) else torch.channels_last
    return net.to(memory_format=order)  # type: ignore[call-overload,no-any-return]


def _write_onnx(model: LoadedModel, folder: Path) -> None:
    (folder / ONNX).write_bytes(to_onnx(model, model.task.inference.patch).SerializeToString())


def _onnxruntime(folder: Path, model: Model, threads: int | None) -> Session:
    return OnnxSession((folder / ONNX).read_bytes(), _task(folder), "fp32", threads=threads)


def _write_stock(model: LoadedModel, folder: Path) -> None:
    stock = stock_model(model.task, model.task.inference.patch, net=model.net)
    ov.save_model(stock, folder / IR, compress_to_fp16=False)


def _write_nncf(model: LoadedModel, folder: Path) -> None:
    nncf = require("nncf", "peers")
    patch = model.task.inference.patch
    small = tuple(min(n, NNCF_SIDE) for n in patch) if takes_any_size(model) else patch
    stock = stock_model(model.task, small, net=model.net)
    with redirect_stdout(sys.stderr):
        dataset = nncf.Dataset(noise(model, small).patches, lambda x: [x])
        made = nncf.quantize(stock, dataset, subset_size=PATCHES)
    ov.save_model(made, folder / IR, compress_to_fp16=False)


def _stock(precision: str) -> Callable[[Path, Model, int | None], Session]:
    def opened(folder: Path, model: Model, threads: int | None) -> Session:
        task = _task(folder)
        return OpenVinoSession(folder / IR, task, precision, patch=task.inference.patch, threads=threads)

    return opened


def _write_ours(target: str, precision: str) -> Callable[[LoadedModel, Path], None]:
    def write(model: LoadedModel, folder: Path) -> None:
        given = noise(model, model.task.inference.patch) if precision.startswith("int8") else None
        mx.export(model, target=target, precision=precision, calibration=given, out=folder / BUNDLE)

    return write


def _ours(folder: Path, model: Model, threads: int | None) -> Session:
    return mx.open(folder / BUNDLE, threads=threads)


def _task(folder: Path) -> Task:
    return Task.model_validate_json((folder / TASK).read_text())


ENGINES.add("torch eager", Engine("fp32", False, _nothing, _torch(lambda net: net)))
ENGINES.add("torch channels-last", Engine("fp32", False, _nothing, _torch(_channels_last)))
ENGINES.add("torch.compile", Engine("fp32", False, _nothing, _torch(torch.compile)))  # type: ignore[arg-type]
ENGINES.add("onnxruntime", Engine("fp32", False, _write_onnx, _onnxruntime))
for _precision in ("fp32", "bf16"):
    ENGINES.add(f"stock openvino {_precision}", Engine(_precision, False, _write_stock, _stock(_precision)))
ENGINES.add("stock nncf int8", Engine("int8", False, _write_nncf, _stock("int8")))
for _precision in ("fp32", "bf16", "int8", "int8-bf16"):
    ENGINES.add(f"ours {_precision}", Engine(_precision, True, _write_ours("openvino", _precision), _ours))
for _precision in ("fp32", "bf16", "int8"):
    ENGINES.add(f"ours native {_precision}", Engine(_precision, True, _write_ours("native", _precision), _ours))
