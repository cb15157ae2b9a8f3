"""The sliding window: tiling, weights, blending and averaging, with MONAI as the second opinion."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mednext_edge.data.volume import Volume
from mednext_edge.errors import DataError, ExportError, UsageError
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.runtime.predictor import Predictor, gaussian_map, window_starts
from mednext_edge.runtime.session import Array, Session
from mednext_edge.runtime.torch_session import TorchSession
from mednext_edge.task import Inference, ModelSpec, Normalization, Preprocessing, Task


class Fake(Session):
    """A network given as a function of [N, C, *patch]; what it was called with is kept."""

    provider = "fake 1.0"
    precision = "fp32"

    def __init__(self, task: Task, network: Callable[[Array], Array], patch: tuple[int, ...] | None = None) -> None:
        self.task, self.patch, self.network = task, patch, network
        self.inputs: list[Array] = []

    def _run(self, x: Array) -> Array:
        self.inputs.append(x.copy())
        return self.network(x)

    def close(self) -> None:
        self.inputs.clear()


def make_task(patch: tuple[int, ...], classes: int = 3, channels: int = 1, **inference: object) -> Task:
    spec = ModelSpec(
        family="mednext",
        variant="S",
        kernel_size=3,
        spatial_dims=3 if len(patch) == 3 else 2,
        in_channels=channels,
        classes=classes,
        parameters=0,
        config={},
    )
    return Task(
        name="test",
        model=spec,
        preprocessing=Preprocessing(normalization=(Normalization(scheme="none"),) * channels, crop_nonzero=False),
        inference=Inference.model_validate({"patch": patch, **inference}),
        labels={f"label-{i}": i for i in range(classes)},
    )


def one_hot_network(classes: int) -> Callable[[Array], Array]:
    """Logits whose best class is the value of the first channel; what is padded is class 0."""

    def network(x: Array) -> Array:
        values = np.arange(classes, dtype=np.float32).reshape(1, classes, *[1] * (x.ndim - 2))
        logits: Array = -10 * np.abs(x[:, :1] - values)
        return logits

    return network


def labels_volume(shape: tuple[int, ...], classes: int, seed: int = 0) -> Volume:
    labels = np.random.default_rng(seed).integers(0, classes, shape)
    return Volume(labels[np.newaxis].astype(np.float32), np.diag([-0.7, 0.8, 2.0, 1.0]))


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    patch=st.tuples(*[st.integers(3, 9)] * 3),
    step=st.sampled_from([0.4, 0.5, 0.7, 1.0]),
    average=st.sampled_from(["softmax", "logits"]),
    mirror=st.booleans(),
)
def test_labels_survive_any_size(
    shape: tuple[int, ...], patch: tuple[int, ...], step: float, average: str, mirror: bool
) -> None:
    volume = labels_volume(shape, 4)
    task = make_task(patch, classes=4, average=average, mirror_axes=(0, 2), step=step)
    labels = Predictor(Fake(task, one_hot_network(4)), mirror=mirror).predict(volume)
    np.testing.assert_array_equal(labels, volume.array[0])


@pytest.mark.parametrize("patch", [(16, 16, 16), (5, 7, 12), (128, 8, 2), (1, 3, 4), (33, 40)])
def test_gaussian_is_that_of_scipy(patch: tuple[int, ...]) -> None:
    from scipy.ndimage import gaussian_filter

    impulse = np.zeros(patch)
    impulse[tuple(n // 2 for n in patch)] = 1
    expected = gaussian_filter(impulse, [n / 8 for n in patch], mode="constant")
    expected /= expected.max()
    expected[expected == 0] = expected[expected > 0].min()
    found = gaussian_map(patch)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 300), patch=st.integers(1, 128), step=st.floats(0.05, 1))
def test_windows_cover_the_image_evenly(size: int, patch: int, step: float) -> None:
    size = max(size, patch)
    (starts,) = window_starts((size,), (patch,), step)
    assert len(starts) == int(np.ceil((size - patch) / (patch * step))) + 1
    assert starts[0] == 0
    assert starts[-1] == size - patch
    gaps = np.diff(starts)
    assert (gaps <= max(patch * step, 1) + 1).all()
    assert (gaps <= patch).all()
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_window_starts_of_known_sizes() -> None:
    assert window_starts((128, 160, 200), (128, 128, 128), 0.5) == ([0], [0, 32], [0, 36, 72])
    assert window_starts((123, 45), (54, 18), 0.5) == ([0, 23, 46, 69], [0, 9, 18, 27])


def test_agrees_with_monai_where_the_tilings_coincide() -> None:
    from monai.inferers import sliding_window_inference

    patch, classes = (8, 8, 8), 3
    weights = torch.randn(classes, 1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    image = np.random.default_rng(0).normal(size=(1, 16, 24, 20)).astype(np.float32)

    def convolve(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv3d(x, weights, padding=1)

    session = Fake(make_task(patch, classes, average="logits"), lambda x: convolve(torch.from_numpy(x)).numpy())
    # Its own Gaussian is centred at (n - 1) / 2, half a voxel beside nnU-Net's.
    blended = sliding_window_inference(
        torch.from_numpy(image[np.newaxis]),
        patch,
        1,
        convolve,
        0.5,
        roi_weight_map=torch.from_numpy(gaussian_map(patch)),
    )
    expected = torch.softmax(blended[0], 0).numpy()
    np.testing.assert_allclose(Predictor(session).probabilities(image), expected, atol=1e-5)
    assert len(session.inputs) == 3 * 5 * 4


def test_blending_is_the_weighted_mean() -> None:
    """A network that returns its call's number shows the weights themselves."""
    patch = (4, 6)
    calls: list[int] = []

    def network(x: Array) -> Array:
        calls.append(len(calls))
        logits = np.zeros((1, 2, *patch), np.float32)
        logits[:, 1] = calls[-1]
        return logits

    weights = gaussian_map(patch).astype(np.float64)
    for average in ("logits", "softmax"):
        calls.clear()
        found = Predictor(Fake(make_task(patch, 2, average=average), network)).probabilities(
            np.ones((1, 7, 6), np.float32)
        )
        starts, _ = window_starts((7, 6), patch, 0.5)
        total, weighted = np.zeros((7, 6)), np.zeros((7, 6))
        for call, start in enumerate(starts):
            score = call if average == "logits" else 1 / (1 + np.exp(-call))
            weighted[start : start + 4] += weights * score
            total[start : start + 4] += weights
        mean = weighted / total
        expected = 1 / (1 + np.exp(-mean)) if average == "logits" else mean
        np.testing.assert_allclose(found[1], expected, atol=1e-6)
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-6)


def test_one_window_is_passed_through_bit_for_bit() -> None:
    image = np.random.default_rng(0).normal(size=(1, 5, 6, 7)).astype(np.float32)
    session = Fake(make_task((8, 8, 8), 2), lambda x: np.concatenate([x, -x], axis=1))
    found = Predictor(session).probabilities(image)
    logits = torch.from_numpy(np.concatenate([image, -image]))
    np.testing.assert_array_equal(found, torch.softmax(logits, 0).numpy())
    (seen,) = session.inputs
    np.testing.assert_array_equal(seen[0, 0, 1:6, 1:7, 0:7], image[0])
    assert np.count_nonzero(seen) == image.size


def test_mirrors_are_undone_and_averaged() -> None:
    """A network that adds a ramp along its own axes: the flips make the ramp symmetric."""
    image = np.random.default_rng(0).normal(size=(1, 4, 6, 8)).astype(np.float32)
    ramp = np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8) / 50
    session = Fake(
        make_task((4, 6, 8), 2, average="logits", mirror_axes=(0, 2)),
        lambda x: np.stack([x[:, 0], x[:, 0] + ramp], axis=1),
    )
    plain, mirrored = (Predictor(session, mirror=m).probabilities(image) for m in (False, True))
    assert len(session.inputs) == 1 + 4
    symmetric = (ramp + ramp[::-1] + ramp[:, :, ::-1] + ramp[::-1, :, ::-1]) / 4
    np.testing.assert_allclose(plain[1], 1 / (1 + np.exp(-ramp)), atol=1e-5)
    np.testing.assert_allclose(mirrored[1], 1 / (1 + np.exp(-symmetric)), atol=1e-5)


@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_engine_memory_may_be_read_only_and_reused(average: str) -> None:
    """Engines may hand out one buffer again and again; it must be neither written to nor kept."""
    buffer = np.zeros((1, 4, 6, 6, 6), np.float32)

    def network(x: Array) -> Array:
        buffer[:] = one_hot_network(4)(x)
        view = buffer.view()
        view.flags.writeable = False
        return view

    volume = labels_volume((6, 11, 9), 4)
    task = make_task((6, 6, 6), 4, average=average, mirror_axes=(0, 1, 2))
    for mirror in (False, True):
        labels = Predictor(Fake(task, network), mirror=mirror).predict(volume)
        np.testing.assert_array_equal(labels, volume.array[0])


@pytest.mark.parametrize("shape", [(1, 9, 9), (5, 20, 7), (3, 4, 5)])
def test_a_2d_network_takes_a_volume_slice_by_slice(shape: tuple[int, ...]) -> None:
    volume = labels_volume(shape, 3)
    seen: list[tuple[int, int]] = []
    predictor = Predictor(
        Fake(make_task((8, 8)), one_hot_network(3)), progress=lambda done, total: seen.append((done, total))
    )
    np.testing.assert_array_equal(predictor.predict(volume), volume.array[0])
    assert seen == [(i + 1, len(seen)) for i in range(len(seen))]
    image = volume.array.astype(np.float32)
    single = predictor.probabilities(image[:, 0])
    assert single.shape == (3, *shape[1:])
    np.testing.assert_array_equal(predictor.probabilities(image)[:, 0], single)


def test_flips_of_axes_of_one_voxel() -> None:
    task = make_task((1, 4, 4), mirror_axes=(0, 1))
    session = TorchSession(torch.nn.Conv3d(1, 3, 1), task)
    found = Predictor(session, mirror=True).probabilities(np.ones((1, 2, 5, 4), np.float32))
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_progress_counts_windows() -> None:
    seen: list[tuple[int, int]] = []
    predictor = Predictor(
        Fake(make_task((4, 4, 4)), one_hot_network(3)),
        step=1.0,
        progress=lambda done, total: seen.append((done, total)),
    )
    predictor.probabilities(np.zeros((1, 8, 4, 12), np.float32))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_a_compiled_patch_goes_before_the_tasks() -> None:
    session = Fake(make_task((8, 8, 8)), one_hot_network(3), patch=(4, 4, 4))
    volume = labels_volume((7, 5, 4), 3)
    np.testing.assert_array_equal(Predictor(session).predict(volume), volume.array[0])
    assert {x.shape for x in session.inputs} == {(1, 1, 4, 4, 4)}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_name_the_usual_cause(bad: float) -> None:
    def network(x: Array) -> Array:
        logits = np.zeros((1, 3, 4, 4, 4), np.float32)
        logits[0, 1, 2, 3, 1] = bad
        return logits

    with pytest.raises(ExportError, match=r"fake 1\.0 at fp32 returned NaN or infinite logits.*fp16"):
        Predictor(Fake(make_task((4, 4, 4)), network)).probabilities(np.zeros((1, 4, 4, 4), np.float32))


def test_logits_of_another_shape_are_refused() -> None:
    session = Fake(make_task((4, 4, 4), classes=5), one_hot_network(3))
    with pytest.raises(ExportError, match=r"\(1, 3, 4, 4, 4\); expected \(1, 5, 4, 4, 4\)"):
        Predictor(session).probabilities(np.zeros((1, 4, 4, 4), np.float32))


def test_images_that_do_not_fit_are_refused() -> None:
    three = Predictor(Fake(make_task((4, 4, 4)), one_hot_network(3)))
    two = Predictor(Fake(make_task((4, 4)), one_hot_network(3)))
    with pytest.raises(DataError, match="3-D network"):
        three.probabilities(np.zeros((1, 8, 8), np.float32))
    with pytest.raises(DataError, match="2-D network"):
        two.probabilities(np.zeros((8, 8), np.float32))
    with pytest.raises(DataError, match="2 channels; expected 1"):
        three.probabilities(np.zeros((2, 8, 8, 8), np.float32))
    with pytest.raises(DataError, match="2 channels; expected 1"):
        three.predict(Volume(np.zeros((2, 8, 8, 8), np.float32), np.eye(4)))
    for step in (0, -1, 1.5, float("nan")):
        with pytest.raises(UsageError, match="step"):
            Predictor(three.session, step=step)


def test_a_real_network_sees_the_same_as_without_a_window(tiny_model: LoadedModel) -> None:
    image = np.random.default_rng(0).normal(size=(1, 16, 16, 16)).astype(np.float32)
    session = TorchSession.of(tiny_model)
    with torch.inference_mode():
        direct = torch.softmax(tiny_model.net(torch.from_numpy(image[np.newaxis]))[0], 0).numpy()
    np.testing.assert_allclose(Predictor(session).probabilities(image), direct, atol=1e-5)
    labels = Predictor(session).predict(Volume(np.pad(image, [(0, 0), (3, 0), (0, 5), (0, 0)]), np.eye(4)))
    assert labels.shape == (19, 21, 16)
    assert not labels[:3].any()
    assert not labels[:, 16:].any()
