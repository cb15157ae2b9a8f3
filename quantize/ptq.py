"""Post-training INT8 with NNCF: ranges from calibration patches, weights per channel, bias correction.

Activations are symmetric. An asymmetric activation in front of a depthwise convolution makes OpenVINO run
that convolution in FP32 without a word, and TensorRT takes symmetric ones only.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

import nncf
import numpy as np

from mednext_edge.quantize.calibration import CalibrationSet

Model = TypeVar("Model")
# x86 processors without VNNI add pairs of products in 16 bits, which saturate unless the weights keep to 7 bits.
OVERFLOW_FIX = nncf.OverflowFix.ENABLE


def quantize(
    model: Model, calibration: CalibrationSet, *, input_name: str, float_operators: Collection[str] = ()
) -> Model:
    """INT8 form of an `onnx.ModelProto` or an `openvino.Model`.

    Args:
        model: with a static input of the calibration patches' shape.
        calibration: patches to take the ranges from.
        input_name: name of the model's one input.
        float_operators: types of operators, in the model's own terms, whose inputs stay as they are.
    """
    with _quiet():
        quantized: Model = nncf.quantize(
            model,
            nncf.Dataset(calibration.patches, lambda patch: {input_name: np.asarray(patch)}),
            subset_size=len(calibration.patches),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            ignored_scope=nncf.IgnoredScope(types=sorted(float_operators), validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=OVERFLOW_FIX),
        )
    return quantized


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNCF reports on stdout, which belongs to `--json`: its words go to stderr, warnings and worse only."""
    logger: Any = logging.getLogger("nncf")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(before)
