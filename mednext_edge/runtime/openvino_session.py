"""OpenVINO as an engine (CPU, iGPU, NPU)."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from mednext_edge.errors import ExportError, TargetUnavailableError
from mednext_edge.runtime.session import Array, Session
from mednext_edge.task import Task

_LOG = logging.getLogger(__name__)
# OpenVINO computes an FP32 graph in bfloat16 on CPUs that have it unless told otherwise.
HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32", "int8-bf16": "bf16"}
REFUSED = "mednext_edge_refused"
"""Entry of a graph: names of nodes in bfloat16 since the exporting machine had no INT8 kernel for them, one a line."""
GIVEN_BACK = "mednext_edge_given_back"
"""Entry of a graph: JSON, names of nodes that are not INT8 since float was measured to be faster, with the reason."""
LAYER_KINDS = ("Convolution", "Deconvolution", "MVN", "FullyConnected", "MatMul")
# The suffix of the kernel's name says what it computes in; the layer's own precision is that of its input.
KERNEL_PRECISIONS = {"i8": "int8", "u8": "int8", "f32": "fp32", "bf16": "bf16", "f16": "fp16"}


@dataclass(frozen=True)
class Layer:
    """One executed layer: its name in the graph, its kind, the precision it computes in, and the kernel."""

    name: str
    kind: str
    precision: str
    kernel: str


Tensor = tuple[tuple[int, ...], str]
"""Shape and precision, such as `f32`."""


@dataclass(frozen=True)
class Executed:
    """One operator of the graph as the plugin executes it, after its fusions; weights are inputs too."""

    name: str
    kind: str
    kernel: str
    precision: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class OpenVinoSession(Session):
    """A compiled OpenVINO model.

    Args:
        model: path of the IR, or a model in memory.
        task: what it is for.
        precision: `fp32`, `fp16`, `bf16`, `int8` or `int8-bf16`; decides what the layers outside INT8 compute in.
            Where the plugin has no kernels for an INT8 graph in bfloat16, they compute in FP32.
        patch: spatial size to compile for; None keeps the model's own.
        device: OpenVINO device name.
        threads: CPU threads; None lets OpenVINO choose.

    Attributes:
        kept: names of nodes that the graph has in bfloat16 since there was no INT8 kernel for them beside it.
        given_back: names of nodes that tuning left in float -> why.

    Raises:
        TargetUnavailableError: no such device.
        ExportError: the plugin refuses the model.
    """

    def __init__(
        self,
        model: Path | ov.Model,
        task: Task,
        precision: str,
        *,
        patch: tuple[int, ...] | None = None,
        device: str = "CPU",
        threads: int | None = None,
    ) -> None:
        core = ov.Core()
        # Weights would else be read from the file while patches run: a file that is changed or cut then would change
        # the answers, or end the process.
        core.set_property({"ENABLE_MMAP": False})
        if device.split(".")[0].split(":")[0] not in {d.split(".")[0] for d in core.available_devices} | {
            "AUTO",
            "MULTI",
        }:
            raise TargetUnavailableError(
                f"found no OpenVINO device `{device}`; this machine has {', '.join(core.available_devices) or 'none'}"
            )
        self.task = task
        self.provider = f"openvino {ov.get_version().split('-')[0]}"
        self.precision = precision
        self.threads = threads
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if device == "CPU":
            options["INFERENCE_PRECISION_HINT"] = HINTS[precision]
            if threads is not None:
                options["INFERENCE_NUM_THREADS"] = threads
        try:
            graph = core.read_model(model) if isinstance(model, Path) else model
            if patch is not None:
                graph.reshape([1, task.model.in_channels, *patch])
            self.kept = frozenset(_noted(graph, REFUSED, "").splitlines())
            self.given_back: dict[str, str] = json.loads(_noted(graph, GIVEN_BACK, "{}"))
            shape = graph.inputs[0].partial_shape
            self.patch = None if shape.is_dynamic else tuple(int(n) for n in shape.to_shape())[2:]
            self._compiled: ov.CompiledModel | None = self._compile(core, graph, device, options)
        except RuntimeError as error:
            raise ExportError(f"OpenVINO cannot compile this model for {device}: {error}") from error
        self._request = self._compiled.create_infer_request()
        if device == "CPU":
            self.used_threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS"))

    def _compile(self, core: ov.Core, graph: ov.Model, device: str, options: dict[str, Any]) -> ov.CompiledModel:
        try:
            return core.compile_model(graph, device, options)
        except RuntimeError as error:
            if self.precision != "int8-bf16" or device != "CPU":
                raise
            # Some INT8 layers have no kernel with bfloat16 beside them ("No suitable implementations").
            self.refused = f"OpenVINO cannot compile this graph with bfloat16 ({str(error).splitlines()[-1].strip()})"
            _LOG.warning("%s; what is not INT8 computes in FP32", self.refused)
            return core.compile_model(graph, device, {**options, "INFERENCE_PRECISION_HINT": "f32"})

    def _run(self, x: Array) -> Array:
        # One patch a call: the graph's batch is 1, and a batch of patches is no faster on a CPU.
        out = [self._request.infer([x[i : i + 1]])[0].copy() for i in range(len(x))]
        return np.concatenate(out) if len(out) != 1 else out[0]

    def layers(self) -> list[Layer]:
        """The convolutions, norms and matrix products as the plugin really executes them."""
        found = []
        for op in self.executed():
            if op.kind in LAYER_KINDS:
                suffix = op.kernel.rsplit("_", 1)[-1].lower()
                found.append(Layer(op.name, op.kind, KERNEL_PRECISIONS.get(suffix, op.precision), op.kernel))
        return found

    def executed(self) -> list[Executed]:
        """Every operator that the plugin executes, constants included, in its order."""
        assert self._compiled is not None, "this session is closed"
        found: list[Executed] = []
        made: dict[tuple[str, int], Tensor] = {}
        for op in self._compiled.get_runtime_model().get_ordered_ops():
            info = {key: value.astype(str) for key, value in op.get_rt_info().items()}
            precisions = info.get("outputPrecisions", "").split(",")
            outputs = []
            for index, port in enumerate(op.outputs()):
                shape = port.get_partial_shape()
                size = () if shape.is_dynamic else tuple(int(n) for n in shape.to_shape())
                outputs.append((size, precisions[min(index, len(precisions) - 1)]))
                made[op.get_friendly_name(), index] = outputs[-1]
            sources = [port.get_source_output() for port in op.inputs()]
            found.append(
                Executed(
                    name=info.get("originalLayersNames") or op.get_friendly_name(),
                    kind=info.get("layerType", "unknown"),
                    kernel=info.get("primitiveType", "unknown"),
                    precision=info.get("runtimePrecision", "unknown"),
                    inputs=tuple(made[port.get_node().get_friendly_name(), port.get_index()] for port in sources),
                    outputs=tuple(outputs),
                )
            )
        return found

    def close(self) -> None:
        self._compiled = self._request = None


def _noted(graph: ov.Model, entry: str, default: str) -> str:
    return str(graph.get_rt_info(entry).astype(str)) if graph.has_rt_info(entry) else default
