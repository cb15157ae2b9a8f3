"""Headroom of float16: what is refused, what passes, and what is looked at."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mednext_edge.errors import ExportError
from mednext_edge.quantize.calibration import FLOAT_PATCHES, CalibrationSet
from mednext_edge.quantize.headroom import LARGEST, MARGIN, check_headroom
from mednext_edge.quantize.observe import observe
from tests.quantize.networks import NETWORKS, Network, network, noise

LIMIT = LARGEST / MARGIN


@pytest.fixture
def built() -> Network:
    return network("pointwise")


def changed(graph: onnx.ModelProto, **constants: Callable[[Any], Any]) -> onnx.ModelProto:
    """A copy with other values of some constants; `__` stands for a dot."""
    result = onnx.ModelProto()
    result.CopyFrom(graph)
    known = {init.name: init for init in result.graph.initializer}
    for name, change in constants.items():
        init = known[name.replace("__", ".")]
        values = numpy_helper.to_array(init)
        with np.errstate(over="ignore"):
            new = np.asarray(change(values.astype(np.float64)), dtype=np.float64).astype(values.dtype)
        init.CopyFrom(numpy_helper.from_array(new, init.name))
    return result


def output_of(graph: onnx.ModelProto, convolution: str) -> str:
    (node,) = (node for node in graph.graph.node if node.name == convolution)
    return str(node.output[0])


class Halves(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the largest absolute value of every float16 tensor that PyTorch makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float16:
                self.peak = max(self.peak, float(tensor.float().abs().max()))
        return result


def peak_in_torch(net: nn.Module, calibration: CalibrationSet) -> float:
    half = copy.deepcopy(net).half()
    seen = Halves()
    with torch.no_grad(), seen:
        for patch in calibration.patches:
            half(torch.from_numpy(patch).half())
    return seen.peak


@pytest.mark.parametrize("name", NETWORKS)
def test_a_normal_network_passes_with_pytorchs_peak(name: str) -> None:
    built = network(name)
    peak = check_headroom(built.half, built.calibration)
    # Both round to 11 bits, at every step.
    assert peak.value == pytest.approx(peak_in_torch(built.model.net, built.calibration), rel=2e-3)
    assert 1 < peak.value < LIMIT
    assert peak.tensor in {out for node in built.half.graph.node for out in node.output}


def stem_reaching(built: Network, value: float) -> tuple[onnx.ModelProto, str]:
    """The stem with such weights that its output reaches a value, and nothing behind it more: the name of the output.

    What follows the stem is made small, so that residuals add nothing to speak of.
    """
    image = np.stack([patch.max(axis=(0, 2, 3, 4)) for patch in built.calibration.patches])
    graph = changed(
        built.half,
        stem__weight=lambda w: np.where(np.arange(w.size).reshape(w.shape) == 0, value / image[:, 0].max(), 0),
        stem__bias=np.zeros_like,
        enc_block_0__0__conv1__weight=lambda w: w * 1e-3,
        enc_block_0__0__conv3__weight=lambda w: w * 1e-3,
        enc_block_0__0__conv3__bias=np.zeros_like,
        down_0__conv1__weight=lambda w: w * 1e-3,
        down_0__res_conv__weight=lambda w: w * 1e-3,
        dec_block_0__0__conv1__weight=lambda w: w * 1e-3,
        out_0__conv_out__weight=lambda w: w * 1e-3,
        **{f"{block}__conv3__bias": np.zeros_like for block in ("down_0", "up_0")},
    )
    return graph, output_of(graph, "stem")


def test_an_activation_just_below_the_limit_passes(built: Network) -> None:
    graph, _ = stem_reaching(built, 0.98 * LIMIT)
    peak = check_headroom(graph, built.calibration)
    assert peak.value == pytest.approx(0.98 * LIMIT, rel=5e-3)


def test_an_activation_above_the_limit_is_refused_with_its_name_and_advice(built: Network) -> None:
    graph, tensor = stem_reaching(built, 1.02 * LIMIT)
    with pytest.raises(
        ExportError, match=r"float16 ends at 65504, and 16376 are allowed.*Export with --precision fp32"
    ) as e:
        check_headroom(graph, built.calibration)
    named, value = str(e.value).split(";")[0].removeprefix("the activations of ").split(" reach ")
    assert float(value) == pytest.approx(1.02 * LIMIT, rel=5e-3)
    # The stem's, or its sum with the little that the first block adds.
    assert named == tensor or tensor in next(n.input for n in graph.graph.node if named in n.output)


@pytest.mark.parametrize("scale", [1e4, 1e5])
def test_an_activation_beyond_float16_is_refused(built: Network, scale: float) -> None:
    """In float16 it is infinite, and then NaN, whatever the engine at hand makes of it."""
    graph = changed(built.half, dec_block_0__0__conv2__weight=lambda w: np.clip(w * scale, -6e4, 6e4))
    with pytest.raises(ExportError, match=r"the activations of \S+ reach (inf|\d{5,}); float16 ends at 65504"):
        check_headroom(graph, built.calibration)


def test_the_first_convolution_may_overflow(built: Network) -> None:
    """Everything behind it is NaN then, which is smaller than nothing."""
    graph = changed(built.half, stem__weight=lambda w: np.full_like(w, 6e4))
    with pytest.raises(ExportError, match=r"the activations of \S+ reach (inf|\d{5,}); float16 ends at 65504"):
        check_headroom(graph, built.calibration)


def test_an_image_beyond_float16_is_refused(built: Network) -> None:
    """Intensities that nothing normalises."""
    bright = replace(built.calibration, patches=tuple(p * np.float32(1e5) for p in built.calibration.patches))
    with pytest.raises(ExportError, match=r"the activations of \S+ reach"):
        check_headroom(built.half, bright)


@pytest.mark.parametrize(("value", "words"), [(1e5, "inf"), (-1e5, "inf"), (np.nan, "nan")])
def test_weights_that_float16_does_not_hold_are_refused(built: Network, value: float, words: str) -> None:
    def one(weight: Any) -> Any:
        weight.flat[3] = value
        return weight

    graph = changed(built.half, bottleneck__0__conv2__weight=one)
    told: list[tuple[int, int]] = []
    with pytest.raises(
        ExportError, match=rf"the weights bottleneck\.0\.conv2\.weight reach {words};.*--precision fp32"
    ):
        check_headroom(graph, built.calibration, lambda *now: told.append(now))
    assert told == []  # seen before anything is computed


def test_the_largest_weight_of_float16_is_no_reason(built: Network) -> None:
    """Alone it says nothing of the activations: here it meets a channel that is always zero."""
    graph = changed(
        built.half,
        stem__weight=lambda w: np.where(np.arange(len(w)).reshape(-1, 1, 1, 1, 1) == 5, 0, w),
        stem__bias=lambda b: np.where(np.arange(len(b)) == 5, 0, b),
        enc_block_0__0__conv3__weight=lambda w: np.where(np.arange(len(w)).reshape(-1, 1, 1, 1, 1) == 5, 0, w),
        enc_block_0__0__conv3__bias=lambda b: np.where(np.arange(len(b)) == 5, 0, b),
        down_0__res_conv__weight=lambda w: np.where(np.arange(w.shape[1]).reshape(1, -1, 1, 1, 1) == 5, LARGEST, w),
    )
    assert check_headroom(graph, built.calibration).value < LIMIT


def test_what_stands_in_float32_is_not_counted() -> None:
    """GRN's sums of squares, far above what float16 holds."""
    built = network("all, GRN")
    graph = changed(built.half, enc_block_0__0__conv2__weight=lambda w: w * 100)
    sums = [node.output[0] for node in graph.graph.node if node.op_type == "ReduceSum"]
    assert sums
    (values,) = observe(graph, replace(built.calibration, patches=built.calibration.patches[:1]), extremes=sums)
    assert max(seen.high for seen in values.values()) > 10 * LARGEST
    assert check_headroom(graph, built.calibration).value < LIMIT


def test_the_first_patches_are_enough(built: Network) -> None:
    few = noise(built.config, built.patch, FLOAT_PATCHES)
    bright = np.full_like(few.patches[0], 3e4)
    told: list[tuple[int, int]] = []
    more = replace(few, patches=(*few.patches, bright))
    assert check_headroom(built.half, more, lambda *now: told.append(now)) == check_headroom(built.half, few)
    assert told == [(i, FLOAT_PATCHES) for i in range(1, FLOAT_PATCHES + 1)]
    with pytest.raises(ExportError):
        check_headroom(built.half, replace(few, patches=(*few.patches[:-1], bright)))


def test_the_graph_stays_as_it_is(built: Network) -> None:
    before = built.half.SerializeToString(deterministic=True)
    check_headroom(built.half, built.calibration)
    assert built.half.SerializeToString(deterministic=True) == before
