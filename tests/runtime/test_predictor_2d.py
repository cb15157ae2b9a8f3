"""Single logits, stretched images, and whole images that are classified."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mednext_edge.data.volume import Volume
from mednext_edge.errors import DataError, ExportError
from mednext_edge.models.ensemble import Ensemble
from mednext_edge.models.logits import decided, per_class
from mednext_edge.runtime.predictor import Predictor
from mednext_edge.runtime.session import Array
from mednext_edge.task import Task

from .test_predictor import Fake, make_task


def binary_task(patch: tuple[int, ...] = (4, 4), average: str = "softmax") -> Task:
    task = make_task(patch, classes=2, average=average)
    return task.model_copy(update={"model": task.model.model_copy(update={"classes": 1})})


def classifier_task(patch: tuple[int, ...] = (4, 4), classes: int = 3, **inference: object) -> Task:
    task = make_task(patch, classes=classes, **inference)
    return task.model_copy(update={"model": task.model.model_copy(update={"kind": "classification"})})


def image(seed: int = 0, shape: tuple[int, ...] = (1, 1, 7, 9)) -> Volume:
    return Volume(np.random.default_rng(seed).normal(size=shape).astype(np.float32), np.eye(4))


@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_one_logit_is_a_sigmoid_at_one_half(average: str) -> None:
    volume = image()
    predictor = Predictor(Fake(binary_task((8, 12), average), lambda x: 3 * x))
    assert np.array_equal(predictor.predict(volume), (volume.array[0] > 0).astype(np.uint8))
    found = predictor.probabilities(volume.array[:, 0])
    assert np.allclose(found[1], 1 / (1 + np.exp(-3 * volume.array[0, 0])), atol=1e-6)


def test_per_class_and_decided_agree() -> None:
    one, many = torch.randn(2, 1, 3, 3), torch.randn(2, 4, 3, 3)
    for logits in (one, many):
        assert np.array_equal(decided(logits.numpy()), per_class(logits).argmax(1).numpy())


@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_an_ensemble_of_single_logits_averages_their_sigmoids(average: str) -> None:
    class Scale(torch.nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.factor

    net = Ensemble([Scale(1), Scale(-3)], binary_task().model, average)  # type: ignore[arg-type]
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    expected = (x.sigmoid() + (-3 * x).sigmoid()) / 2 if average == "softmax" else (-x).sigmoid()
    assert torch.allclose(net(x).sigmoid(), expected)


def test_images_are_stretched_in_and_labels_back() -> None:
    task = binary_task()
    recipe = task.preprocessing.model_copy(update={"size": (4, 4), "image_order": 1, "label_order": 0})
    session = Fake(task.model_copy(update={"preprocessing": recipe}), lambda x: x)
    bright = np.full((1, 1, 8, 16), -1, np.float32)
    bright[..., 8:] = 1
    found = Predictor(session).predict(Volume(bright, np.eye(4)))
    assert session.inputs[0].shape == (1, 1, 4, 4)
    assert np.array_equal(found, (bright[0] > 0).astype(np.uint8))


def network(x: Array) -> Array:
    """Class by class the mean, its square, and a constant."""
    mean = x.mean((1, 2, 3))
    return np.stack([mean, mean**2, np.ones_like(mean)], axis=1).astype(np.float32)


def test_a_class_of_the_whole_image() -> None:
    volume = image(shape=(1, 1, 4, 4))
    found = Predictor(Fake(classifier_task(), network)).classify(volume)
    logits = torch.from_numpy(network(volume.array[:, 0][np.newaxis]))[0]
    assert np.allclose(found, logits.softmax(0), atol=1e-6)


@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_windows_slices_and_flips_are_averaged(average: str) -> None:
    seen: list[tuple[int, int]] = []
    volume = image(shape=(1, 2, 4, 8))
    session = Fake(classifier_task(average=average, mirror_axes=(0,), step=1.0), network)
    found = Predictor(session, mirror=True, progress=lambda done, total: seen.append((done, total))).classify(volume)
    assert len(session.inputs) == 8
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert found.sum() == pytest.approx(1)
    logits = torch.from_numpy(np.concatenate([network(x) for x in session.inputs[::2]]))
    if average == "softmax":
        assert np.allclose(found, logits.softmax(1).mean(0), atol=1e-5)


def test_the_wrong_question_is_refused() -> None:
    with pytest.raises(DataError, match="expected a network for segmentation"):
        Predictor(Fake(classifier_task(), network)).predict(image())
    with pytest.raises(DataError, match="expected a network for classification"):
        Predictor(Fake(binary_task(), lambda x: x)).classify(image())


def test_an_answer_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ExportError, match=r"expected \(1, 3\)"):
        Predictor(Fake(classifier_task(), lambda x: x)).classify(image())
