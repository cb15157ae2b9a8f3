"""The shipped models are whole, small, documented, and still segment what they were trained for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mednext_edge as mx
from mednext_edge.checkpoints.demo import FOLDER
from mednext_edge.data.dataset import open_dataset
from mednext_edge.data.recipe import prepare
from mednext_edge.evaluation.metrics import dice
from mednext_edge.runtime.predictor import Predictor

NAMES = sorted(path.parent.name for path in FOLDER.glob("*/model.json"))


def test_there_are_models() -> None:
    assert "brain-tissue" in NAMES
    assert len(NAMES) <= 4


@pytest.mark.parametrize("name", NAMES)
def test_model_is_whole_small_and_documented(name: str) -> None:
    model = mx.load(f"demo:{name}")  # checks the digest
    weights = FOLDER / name / "weights.safetensors"
    card = (FOLDER / name / "README.md").read_text()
    assert weights.stat().st_size < 12e6
    assert model.task.name == name
    for needed in ("mednext-edge train", "licence", "Dice", "seed", "minutes", "not a medical device"):
        assert needed in card


def test_brain_tissue_finds_both_tissues_in_the_unseen_half() -> None:
    model = mx.load("demo:brain-tissue")
    (case,) = open_dataset("demo:brain-tissue").validation
    assert case.labels is not None
    prepared = prepare(case.image(), model.task.preprocessing, case.labels())
    assert prepared.labels is not None
    # One central patch keeps this quick; the shipped figure is of the whole half.
    sizes = zip(prepared.labels.shape, model.task.inference.patch, strict=True)
    window = tuple(slice(max(0, n // 2 - side // 2), n // 2 + side // 2) for n, side in sizes)
    patch, reference = prepared.image[(slice(None), *window)], prepared.labels[window]
    with mx.open(model) as session:
        found = Predictor(session).probabilities(patch).argmax(0)
    for value in (1, 2):
        assert dice(found == value, reference == value) > 0.8  # the deep grey matter in the middle is the hard part


def test_hippocampus_finds_both_parts(hippocampus: Path) -> None:
    model = mx.load("demo:hippocampus")
    scores = []
    with mx.open(model) as session:
        for case in open_dataset(hippocampus).validation[:3]:
            assert case.labels is not None
            found, reference = mx.predict(session, case.image()), case.labels().array
            scores += [dice(found == value, reference == value) for value in (1, 2)]
    assert np.mean(scores) > 0.8
