"""The Python backend's model: whole volumes in, labels out. Triton calls `TritonPythonModel`.

This file is copied into a model repository as `1/model.py`, beside the bundle that it opens.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

import mednext_edge.runtime.engines as engines
from mednext_edge.data.volume import Volume
from mednext_edge.errors import MednextEdgeError
from mednext_edge.runtime.predictor import Predictor


class TritonPythonModel:
    """One instance, with the engine open; the digests of the bundle are checked first."""

    def initialize(self, args: dict[str, str]) -> None:
        """Called once; `args` has the repository's path, the version, and where to run."""
        self._triton = importlib.import_module("triton_python_backend_utils")
        where = Path(args["model_repository"]) / args["model_version"] / "bundle"
        gpu = json.loads(args["model_config"])["instance_group"][0]["kind"] == "KIND_GPU"
        self._session = engines.open(where, device=f"cuda:{args['model_instance_device_id']}" if gpu else None)
        self._predictor = Predictor(self._session)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order; a volume that cannot be segmented is an error of its own request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        triton = self._triton
        image, affine = (triton.get_input_tensor_by_name(request, name).as_numpy() for name in ("IMAGE", "AFFINE"))
        try:
            flat = not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9
            if flat or not np.isfinite(image).all():
                raise MednextEdgeError("found an affine without inverse, or NaN or infinite voxels")
            labels = self._predictor.predict(Volume(image, affine)).astype(np.uint16)
        except MednextEdgeError as error:
            return triton.InferenceResponse(output_tensors=[], error=triton.TritonError(str(error)))
        return triton.InferenceResponse(output_tensors=[triton.Tensor("LABELS", labels)])

    def finalize(self) -> None:
        """Called once, at the end."""
        self._session.close()
