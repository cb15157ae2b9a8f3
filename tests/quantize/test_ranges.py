"""Ranges of activations: histograms that grow, thresholds against a search, and what is seen against PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from mednext_edge.errors import DataError, ExportError, UnknownNameError
from mednext_edge.fusion.parity import ParityConvTranspose
from mednext_edge.quantize import observe
from mednext_edge.quantize.calibration import CalibrationSet
from mednext_edge.quantize.flavour import LEVELS
from mednext_edge.quantize.kinds import Layer, layers
from mednext_edge.quantize.ranges import BINS, ESTIMATORS, ActivationRange, Histogram
from tests.quantize.networks import NETWORKS, collect, network

Array = NDArray[np.float64]
SAMPLES = 30_000

# Histograms -------------------------------------------------------------------------------------------------------


def filled(*parts: Tensor) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part, float(part.abs().max()))
    return histogram


@settings(max_examples=60, deadline=None)
@given(
    scales=st.lists(st.integers(-40, 40), min_size=1, max_size=6),
    zeros=st.integers(0, 50),
    seed=st.integers(0, 2**16),
)
def test_a_range_that_doubles_keeps_every_count(scales: list[int], zeros: int, seed: int) -> None:
    """Against one histogram over the final range."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        torch.cat([torch.randn(200, generator=generator) * 2.0**scale, torch.zeros(zeros)])[torch.randperm(200 + zeros)]
        for scale in scales
    ]
    histogram = filled(*parts)
    values = torch.cat(parts).abs().double()
    first = float(parts[0].abs().max())
    peak = float(values.max())
    assert histogram.counts.sum() == (values > 0).sum()
    assert max(first, peak) <= histogram.top < 2 * max(first, peak)
    assert math.log2(histogram.top / first).is_integer()
    whole = torch.histc(values[values > 0], BINS, 0, histogram.top)
    # The largest value of the first range is counted below its edge, not above.
    assert (histogram.counts.cumsum(0) - whole.cumsum(0)).abs().max() <= (values == first).sum()


def test_the_mass_of_a_grown_histogram_lies_where_it_did() -> None:
    small, large = torch.full((100,), 0.25), torch.full((10,), 1000.0)
    histogram = filled(torch.tensor([1.0]), small, large)
    width = histogram.top / BINS
    assert histogram.top == 1024
    centres = (torch.arange(BINS, dtype=torch.float64) + 0.5) * width
    assert float(histogram.counts @ centres) == pytest.approx(1 + 100 * 0.25 + 10 * 1000, abs=111 * width / 2)
    assert histogram.counts[int(1000 / width)] == 10


@pytest.mark.parametrize("top", [1e-45, 1e-38, 1e-20, 1e20, 3e38])
def test_ranges_at_the_ends_of_float32(top: float) -> None:
    histogram = filled(torch.tensor([top, top / 2, -top / 4]) if top > 1e-44 else torch.tensor([top]))
    assert histogram.threshold() == pytest.approx(float(torch.tensor(top)), rel=1e-3)
    wide = filled(torch.tensor([2e38]), torch.tensor([3e38, -1e38]))
    assert wide.counts.sum() == 3
    assert wide.threshold() == pytest.approx(3e38, rel=2e-3)


# Thresholds -------------------------------------------------------------------------------------------------------


def true_error(values: Array, threshold: float) -> float:
    """Mean squared error of rounding to a multiple of threshold / 127 and clipping, in float64."""
    scale = threshold / LEVELS
    return float(np.mean((values - np.clip(np.rint(values / scale), -LEVELS, LEVELS) * scale) ** 2))


def best_error(values: Array) -> float:
    """That of the best threshold of a thousand, down to 1/250 of the largest value."""
    peak = np.abs(values).max()
    return min(true_error(values, float(peak * share)) for share in np.geomspace(1 / 250, 1, 1000))


def gelu(values: Array) -> Array:
    activated: Array = nn.functional.gelu(torch.from_numpy(values)).numpy()
    return activated


def outliers(rng: np.random.Generator, size: float, every: int) -> Array:
    values = rng.standard_normal(SAMPLES)
    values[::every] *= size
    return values


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator], Array]] = {
    "normal": lambda rng: rng.standard_normal(SAMPLES),
    "shifted normal": lambda rng: rng.standard_normal(SAMPLES) + 3,
    "tiny normal": lambda rng: rng.standard_normal(SAMPLES) * 1e-6,
    "huge normal": lambda rng: rng.standard_normal(SAMPLES) * 1e6,
    "uniform": lambda rng: rng.uniform(-1, 1, SAMPLES),
    "Laplace": lambda rng: rng.laplace(size=SAMPLES),
    "Student t3": lambda rng: rng.standard_t(3, SAMPLES),
    "Cauchy": lambda rng: rng.standard_cauchy(SAMPLES),
    "log-normal": lambda rng: rng.lognormal(0, 2, SAMPLES),
    "GELU": lambda rng: gelu(rng.standard_normal(SAMPLES)),
    "GELU of wide": lambda rng: gelu(3 * rng.standard_normal(SAMPLES)),
    "GELU of negative": lambda rng: gelu(rng.standard_normal(SAMPLES) - 2),
    "ReLU": lambda rng: np.maximum(rng.standard_normal(SAMPLES), 0),
    "many outliers": lambda rng: outliers(rng, 20, 100),
    "few outliers": lambda rng: outliers(rng, 50, 10_000),
    "one far outlier": lambda rng: np.append(rng.standard_normal(SAMPLES), 1000),
    "eight in ten zero": lambda rng: np.where(rng.random(SAMPLES) < 0.8, 0, rng.standard_normal(SAMPLES)),
    "all but one in a hundred zero": lambda rng: np.where(rng.random(SAMPLES) < 0.99, 0, rng.standard_normal(SAMPLES)),
    "two scales": lambda rng: np.where(rng.random(SAMPLES) < 0.9, 0.01, 10) * rng.standard_normal(SAMPLES),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("parts", [1, 7])
def test_thresholds_lose_no_more_than_a_search(name: str, parts: int) -> None:
    """Its true error is within 3 % of the best; seven patches each grow the range."""
    values = DISTRIBUTIONS[name](np.random.default_rng(0)).astype(np.float32)
    threshold = filled(*(torch.from_numpy(part) for part in np.array_split(values, parts))).threshold()
    exact = values.astype(np.float64)
    assert true_error(exact, threshold) <= 1.03 * best_error(exact)


@settings(max_examples=10, deadline=None)
@given(shift=st.floats(-4, 4), scale=st.floats(1e-3, 1e3), power=st.floats(0.5, 3), seed=st.integers(0, 2**16))
def test_thresholds_of_any_bell(shift: float, scale: float, power: float, seed: int) -> None:
    normal = np.random.default_rng(seed).standard_normal(SAMPLES) + shift
    values = (np.sign(normal) * np.abs(normal) ** power * scale).astype(np.float32)
    exact = values.astype(np.float64)
    threshold = filled(torch.from_numpy(values)).threshold()
    assert true_error(exact, threshold) <= 1.05 * best_error(exact)
    assert 0 < threshold <= 1.001 * np.abs(exact).max()


def test_outliers_are_clipped_where_that_loses_less() -> None:
    """A million ordinary values weigh more than one at fifty times their spread."""
    values = torch.randn(2**20, generator=torch.Generator().manual_seed(0))
    values[0] = 50
    threshold = filled(values).threshold()
    exact = values.double().numpy()
    assert threshold < 25
    assert true_error(exact, threshold) < 0.9 * true_error(exact, 50)


def test_zeros_do_not_move_a_threshold() -> None:
    """What lies outside of the body is zero in many images, and is exact at every scale."""
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    assert filled(values, torch.zeros(100_000)).threshold() == filled(values).threshold()
    assert filled(torch.cat([values, torch.zeros(100_000)])).threshold() == filled(values).threshold()


@pytest.mark.parametrize("value", [3.0, -3.0, 1e-6, 60000.0])
def test_a_constant_is_its_own_threshold(value: float) -> None:
    threshold = filled(torch.full((1000,), value)).threshold()
    assert threshold == pytest.approx(abs(value), rel=1e-6)


@pytest.mark.parametrize("parts", [1, 7])
def test_percentile_and_min_max(parts: int) -> None:
    values = np.random.default_rng(0).standard_normal(2**20).astype(np.float32)
    values[:3], values[3:1000] = (40, -60, 50), 0
    seen = [torch.from_numpy(part) for part in np.array_split(values, parts)]
    histogram = filled(*seen)
    exact = np.quantile(np.abs(values[values != 0]), 0.9999)
    assert histogram.threshold("percentile") == pytest.approx(exact, abs=histogram.top / BINS)
    assert histogram.threshold("min-max") == 60
    assert histogram.threshold() == histogram.threshold("least-error") < 60


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="percentile"):
        filled(torch.ones(3)).threshold("percentil")


def test_a_sample_that_misses_the_only_values_keeps_the_peak() -> None:
    histogram = Histogram()
    histogram.add(torch.zeros(8), 3.0)
    assert [histogram.threshold(name) for name in ESTIMATORS] == [3.0] * 3


def test_nothing_but_zeros() -> None:
    assert Histogram().threshold() == 1
    assert filled(torch.zeros(10), torch.zeros(10)).threshold() == 1


# What is collected ------------------------------------------------------------------------------------------------


def identity_layer(channels: int) -> tuple[onnx.ModelProto, Layer]:
    """A graph of one 1x1 convolution whose input is the image, and its layer."""
    weight = np.eye(channels, dtype=np.float32).reshape(channels, channels, 1, 1)
    shape = [1, channels, "y", "x"]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "net.weight"], ["logits"])],
        "one",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "net.weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model, Layer("net", "pointwise", nn.Conv2d(channels, channels, 1), ("net.weight",))


def collected(*patches: NDArray[np.float32]) -> ActivationRange:
    graph, layer = identity_layer(patches[0].shape[1])
    found: ActivationRange = collect(graph, [layer], CalibrationSet(patches, (), "", 0))["net"]
    return found


def patch(shape: tuple[int, ...] = (1, 2, 6, 5), seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 4), channels=st.integers(1, 5), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 2**16))
def test_peak_and_mean_are_exact(count: int, channels: int, scale: float, seed: int) -> None:
    patches = [(patch((1, channels, 7, 5), seed + i) * scale * (i + 1) + i).astype(np.float32) for i in range(count)]
    found = collected(*patches)
    assert found.peak == max(float(np.abs(p).max()) for p in patches)
    expected = np.stack([p.astype(np.float64).mean(axis=(0, 2, 3)) for p in patches]).mean(0)
    error = np.abs(found.mean.numpy() - expected).max()
    assert found.mean.shape == (channels,)
    assert error <= 1e-6 * found.peak


def test_a_peak_that_the_sample_misses_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "SAMPLED", 16)
    image = patch((1, 2, 16, 16))
    image[0, 0, 0, 1] = -70
    found = collected(image)
    assert found.peak == 70
    assert found.mean.numpy() == pytest.approx(image.mean(axis=(0, 2, 3)), abs=1e-5)


@pytest.mark.parametrize("sampled", [16, 64, 100, 511, 512, 513])
def test_samples_are_spread_over_rows_and_columns(monkeypatch: pytest.MonkeyPatch, sampled: int) -> None:
    """In an image with even sides, each column of which has a value of its own, the sample meets every column."""
    monkeypatch.setattr(observe, "SAMPLED", sampled)
    seen: list[Tensor] = []
    monkeypatch.setattr(Histogram, "add", lambda self, values, peak: seen.append(values.clone()))
    monkeypatch.setattr(Histogram, "threshold", lambda self, estimator: 1.0)
    columns = np.broadcast_to(np.arange(1, 17, dtype=np.float32), (1, 2, 16, 16)).copy()
    collected(columns)
    (values,) = seen
    assert sampled / 2 <= len(values) <= 2 * sampled
    assert set(values.tolist()) == set(range(1, 17))


def test_a_layer_that_sees_zeros_alone() -> None:
    found = collected(np.zeros((1, 3, 4, 4), np.float32))
    assert (found.threshold, found.peak) == (1, 0)
    assert not found.mean.any()


def test_a_layer_that_sees_one_value_alone() -> None:
    found = collected(np.full((1, 3, 4, 4), -0.7, np.float32))
    assert found.threshold == pytest.approx(0.7)
    assert found.mean.tolist() == pytest.approx([-0.7] * 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_what_is_not_finite_is_refused_by_the_layers_name(bad: float, where: int) -> None:
    """In whichever patch it stands, and however few voxels it has."""
    patches = [patch(seed=i) for i in range(3)]
    patches[where][0, 1, 3, 2] = bad
    with pytest.raises(DataError, match="the input of net is not finite on the calibration patches"):
        collected(*patches)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_patches_that_are_nowhere_finite(bad: float) -> None:
    with pytest.raises(DataError, match="the input of net is not finite"):
        collected(np.full((1, 2, 4, 4), bad, np.float32))


def test_a_layer_that_the_graph_does_not_have() -> None:
    graph, layer = identity_layer(2)
    with pytest.raises(ExportError, match=r"no layer with the weights other\.weight"):
        collect(graph, [replace(layer, weights=("other.weight",))], CalibrationSet((patch(),), (), "", 0))


def inputs_in_torch(net: nn.Module, patches: tuple[NDArray[np.float32], ...]) -> dict[str, list[Array]]:
    """Inputs of all convolutions in float64, by hooks; of the parity form the tensor before it is padded."""
    seen: dict[str, list[Array]] = {}
    net = net.double()

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda module, args: seen.setdefault(name, []).append(args[0].numpy())

    hooks = [layer.module.register_forward_pre_hook(hook(layer.name)) for layer in layers(net)]
    with torch.no_grad():
        for image in patches:
            net(torch.from_numpy(image).double())
    for handle in hooks:
        handle.remove()
    net.float()
    return seen


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_collected_is_what_pytorch_sees(name: str) -> None:
    built = network(name)
    seen = inputs_in_torch(built.model.net, built.calibration.patches)
    assert list(built.ranges) == list(built.chosen)
    for layer, found in built.ranges.items():
        values = np.stack(seen[layer])  # [patches, 1, C, *spatial]
        peak = np.abs(values).max()
        assert found.peak == pytest.approx(peak, rel=1e-5)
        axes = (0, 1, *range(3, values.ndim))
        if not isinstance(built.chosen[layer].module, ParityConvTranspose):  # padding changes its mean, not its peak
            assert np.abs(found.mean.numpy() - values.mean(axis=axes)).max() <= 1e-5 * peak
        flat = values.ravel()
        expected = filled(*(torch.from_numpy(part).float() for part in values)).threshold()
        assert true_error(flat, found.threshold) == pytest.approx(true_error(flat, expected), rel=0.01)


def test_shared_inputs_have_one_range() -> None:
    found = network("all, GRN").ranges
    assert found["down_0.conv1"].threshold == found["down_0.res_conv"].threshold
    assert torch.equal(found["down_0.conv1"].mean, found["down_0.res_conv"].mean)
