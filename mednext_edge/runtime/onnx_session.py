"""ONNX Runtime as an engine, and the second opinion on every ONNX graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from mednext_edge.errors import ExportError, TargetUnavailableError
from mednext_edge.runtime.session import Array, Session
from mednext_edge.task import Task

PROVIDERS = {"CPU": "CPUExecutionProvider", "CUDA": "CUDAExecutionProvider", "GPU": "CUDAExecutionProvider"}


class OnnxSession(Session):
    """A graph in ONNX Runtime; its one input and one output are found by position.

    Args:
        model: path of the file, or its bytes.
        task: what it is for.
        precision: what it was exported as.
        device: `CPU` or `CUDA`.
        threads: CPU threads; None lets ONNX Runtime choose.

    Raises:
        TargetUnavailableError: the provider of that device is not installed.
        ExportError: ONNX Runtime refuses the graph.
    """

    def __init__(
        self, model: Path | bytes, task: Task, precision: str, *, device: str = "CPU", threads: int | None = None
    ) -> None:
        provider = PROVIDERS.get(device.upper())
        if provider is None or provider not in ort.get_available_providers():
            raise TargetUnavailableError(
                f"found no ONNX Runtime provider for `{device}`; installed: {', '.join(ort.get_available_providers())}"
            )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # Its plan of the memory comes as a second arena beside the first: twice the memory, for 2 % of the time.
        options.enable_mem_pattern = False
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session: ort.InferenceSession | None = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=[provider]
            )
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception
            raise ExportError(f"ONNX Runtime cannot load this graph: {error}") from error
        self.task = task
        self.provider = f"onnxruntime {ort.__version__}"
        self.precision = precision
        self.threads = threads
        shape = self._session.get_inputs()[0].shape
        self.patch = tuple(shape[2:]) if all(isinstance(n, int) for n in shape) else None
        self._input = self._session.get_inputs()[0].name

    def _run(self, x: Array) -> Array:
        assert self._session is not None, "this session is closed"
        out = [self._session.run(None, {self._input: x[i : i + 1]})[0] for i in range(len(x))]
        return np.concatenate(out) if len(out) != 1 else out[0]

    def close(self) -> None:
        self._session = None
