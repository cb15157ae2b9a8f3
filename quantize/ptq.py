"""Post-training INT8 with NNCF: ranges from calibration patches, weights per channel, bias correction.

Activations are symmetric. An asymmetric activation in front of a depthwise convolution makes OpenVINO run
that convolution in FP32 without a word, and TensorRT takes symmetric ones only.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

import nncf

from mednext_edge.quantize.calibration import Array, CalibrationSet

Model = TypeVar("Model")
# x86 processors without VNNI add pairs of products in 16 bits, which saturate unless the weights keep to 7 bits.
OVERFLOW_FIX = nncf.OverflowFix.ENABLE


def quantize(
    model: Model,
    calibration: CalibrationSet,
    *,
    input_name: str,
    float_operators: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Model:
    """INT8 form of an `onnx.ModelProto` or an `openvino.Model`.

    Args:
        model: with a static input of the calibration patches' shape.
        calibration: patches to take the ranges from.
        input_name: name of the model's one input.
        float_operators: types of operators, in the model's own terms, whose inputs stay as they are.
        progress: called as (patches taken, patches in all).
    """
    taken = itertools.count(1)

    def feed(patch: Array) -> dict[str, Array]:
        if progress is not None:
            progress(min(next(taken), len(calibration.patches)), len(calibration.patches))
        return {input_name: patch}

    with _quiet():
        quantized: Model = nncf.quantize(
            model,
            nncf.Dataset(calibration.patches, feed),
            subset_size=len(calibration.patches),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            ignored_scope=nncf.IgnoredScope(types=sorted(float_operators), validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=OVERFLOW_FIX),
        )
    return quantized


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNCF draws bars on stdout, which belongs to `--json`; it keeps its warnings, on stderr."""
    logger: Any = logging.getLogger("nncf")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
