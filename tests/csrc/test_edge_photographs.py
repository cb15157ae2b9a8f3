"""Photographs and classifiers in libmednext_edge, against the Python Predictor: fake engines, and OpenVINO's."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mednext_edge as mx
from benchmarks.edge.library import ARGUMENT, DATA, EdgeLibrary, Failure, Info, segment_options
from mednext_edge.data.colour import Colour
from mednext_edge.data.volume import Volume
from mednext_edge.models.families import FAMILIES
from mednext_edge.models.loaded import LoadedModel, Source
from mednext_edge.models.mednext2d import MedNeXt2d, MedNeXt2dConfig
from mednext_edge.runtime.predictor import Predictor
from mednext_edge.task import Inference, Normalization, Preprocessing, Task
from tests.csrc.edge_bundles import FakeNetwork, fake_task, installed_library, write_fake_bundle
from tests.csrc.test_edge_parity import compare
from tests.csrc.test_edge_stream import wait_for

SCALED = Normalization(scheme="ct", mean=0, sd=60, lower=0, upper=255)


def picture(channels: int = 3, size: tuple[int, int] = (37, 50), seed: int = 0, depth: int = 1) -> Volume:
    """Smooth 8-bit values in the middle of black, as a reader gives them."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij")
    array = np.zeros((channels, depth, *size), np.float32)
    for plane in array.reshape(-1, *size):
        (a, b), width = rng.uniform(-0.3, 0.3, 2), rng.uniform(0.4, 0.8)
        plane += np.round(255 * np.exp(-((y - a) ** 2 + (x - b) ** 2) / width**2)).astype(np.float32)
        plane[np.hypot(y, x) > 1] = 0
    return Volume(array, np.eye(4))


def photographs(colour: Colour, **recipe: Any) -> Preprocessing:
    return Preprocessing(colour=colour, normalization=(SCALED,) * (1 if colour == "grey" else 3), **recipe)


@pytest.mark.parametrize("colour", ["RGB", "BGR", "grey"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(24, 18), None], ids=["stretched", "tiled"])
def test_photographs(
    fake_edge: EdgeLibrary, tmp_path: Path, colour: Colour, channels: int, size: tuple[int, int] | None
) -> None:
    recipe = photographs(colour, size=size, image_order=1, crop_nonzero=size is None)
    task = fake_task(recipe, patch=(24, 18), mirror_axes=(1,))
    compare(fake_edge, tmp_path, task, picture(channels), mirror=size is None)
    with fake_edge.open(write_fake_bundle(tmp_path / "described", task)) as model:
        info = model.describe()
        assert (info.colour.decode(), info.channels, info.kind) == (colour, 1 if colour == "grey" else 3, 0)
        assert info.needs_whole_volume == 0
        volume = picture(channels)
        expected = model.segment(volume)
        pixels = Volume(volume.array.astype(np.uint8), volume.affine)
        np.testing.assert_array_equal(model.segment(pixels), expected)


@pytest.mark.parametrize("colour", ["RGB", "BGR", "grey"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(24, 18), None], ids=["stretched", "tiled"])
def test_frames_run_as_they_come(
    fake_edge: EdgeLibrary, tmp_path: Path, colour: Colour, channels: int, size: tuple[int, int] | None
) -> None:
    recipe = photographs(colour, size=size, image_order=1, crop_nonzero=False)
    film = picture(channels, depth=4)
    film = Volume(film.array.astype(np.uint8), film.affine)
    with fake_edge.open(write_fake_bundle(tmp_path / "bundle", fake_task(recipe, patch=(24, 18)))) as model:
        with model.stream(film) as stream:
            windows = stream.describe().patches // 4
            for frame in range(4):
                assert stream.describe().patches_early == frame * windows
                stream.push(frame, 1)
                wait_for(stream, (frame + 1) * windows)
            assert stream.describe().reason == b""
            labels = stream.finish()
        np.testing.assert_array_equal(labels, model.segment(film))
        assert len(np.unique(labels)) > 1


def test_a_film_that_goes_dark(fake_edge: EdgeLibrary, tmp_path: Path) -> None:
    """What was guessed of its borders is wrong with the last frame, and colours are not taken a second time."""
    film = picture(depth=3)
    film.array[..., 0, :] = film.array[..., 0] = film.array[..., -1, :] = film.array[..., -1] = 9
    film.array[:, 2] = 0
    film = Volume(film.array.astype(np.uint8), film.affine)
    with fake_edge.open(write_fake_bundle(tmp_path / "bundle", fake_task(photographs("BGR"), patch=(16, 12)))) as model:
        with model.stream(film) as stream:
            stream.push(0, 2)
            wait_for(stream, 1)
            stream.push(2, 1)
            labels = stream.finish()
            assert stream.describe().patches_undone > 0
        np.testing.assert_array_equal(labels, model.segment(film))
        blue_first = Volume(np.ascontiguousarray(film.array[::-1]), film.affine)
        assert (labels != model.segment(blue_first)).any()


CLASSIFIERS: dict[str, tuple[Preprocessing, dict[str, Any], Volume]] = {
    "stretched": (photographs("RGB", size=(16, 12)), {"patch": (16, 12)}, picture()),
    "a stack of slices": (Preprocessing(), {"patch": (16, 12)}, picture(1, depth=4)),
    "windows": (photographs("BGR"), {"patch": (16, 12), "average": "logits", "mirror_axes": (0, 1)}, picture()),
    "one logit": (photographs("grey"), {"patch": (16, 12), "classes": 1}, picture()),
    "volumes": (Preprocessing(), {"patch": (4, 16, 12), "mirror_axes": (0,)}, picture(1, depth=7)),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("mirror", [False, True])
def test_classes(fake_edge: EdgeLibrary, tmp_path: Path, name: str, mirror: bool) -> None:
    recipe, options, volume = CLASSIFIERS[name]
    task = fake_task(recipe, kind="classification", **options)
    expected = Predictor(FakeNetwork(task), mirror=mirror).classify(volume)
    with fake_edge.open(write_fake_bundle(tmp_path / "bundle", task)) as model:
        assert model.describe().kind == 1
        found = model.classify(volume, segment_options(mirror=mirror))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.sum() == pytest.approx(1, abs=1e-5)


def test_the_other_call_is_named(fake_edge: EdgeLibrary, tmp_path: Path) -> None:
    volume = picture()
    with fake_edge.open(write_fake_bundle(tmp_path / "masks", fake_task(photographs("RGB"), patch=(16, 12)))) as model:
        with pytest.raises(Failure, match="makes label maps; call mednext_segment") as caught:
            model.classify(volume)
        assert caught.value.status == ARGUMENT
        with pytest.raises(Failure, match="2 channels; expected a grey one or red, green and blue") as caught:
            model.segment(picture(2))
        assert caught.value.status == DATA
        odd = picture(1)
        odd.array[0, 0, 3, 4] = np.nan
        with pytest.raises(Failure, match="NaN"):
            model.segment(odd)
    task = fake_task(photographs("RGB"), patch=(16, 12), kind="classification")
    with fake_edge.open(write_fake_bundle(tmp_path / "classes", task)) as model:
        for call in (lambda: model.segment(volume), lambda: model.stream(volume).__enter__()):
            with pytest.raises(Failure, match="classifies whole images; call mednext_classify") as caught:
                call()
            assert caught.value.status == ARGUMENT
    with (
        fake_edge.open(write_fake_bundle(tmp_path / "sick", task, "nan")) as model,
        pytest.raises(Failure, match="NaN or infinite logits"),
    ):
        model.classify(volume)


def test_a_program_that_knows_no_kinds(fake_edge: EdgeLibrary, tmp_path: Path) -> None:
    """Built with the header of before: nothing is written behind its structure."""
    info = Info(kind=77, colour=b"kept")
    info.size = Info.kind.offset
    with fake_edge.open(write_fake_bundle(tmp_path / "bundle", fake_task(photographs("RGB"), patch=(16, 12)))) as model:
        fake_edge.call("describe", model.handle, ctypes.byref(info))
    assert (info.name, info.kind, info.colour, info.size) == (b"fake", 77, b"kept", Info.kind.offset)


@pytest.mark.parametrize("kind", ["segmentation", "classification"])
def test_openvino_gives_what_python_gives(tmp_path: Path, kind: Any) -> None:
    torch.manual_seed(0)
    net = MedNeXt2d(MedNeXt2dConfig(widths=(8, 8, 16, 16), depths=(1,) * 4, classes=3, kind=kind)).eval()
    with torch.no_grad():  # every class somewhere
        head = net.decoder.head if kind == "segmentation" else net.classifier
        found = net(torch.randn(2, 3, 64, 64)).transpose(0, 1).flatten(1)
        head.weight *= 1 / found.std()
        head.bias.copy_((head.bias - found.mean(1)) / found.std())
    task = Task(
        name="photographs",
        model=FAMILIES["mednext2d"].describe(net),
        preprocessing=photographs("BGR", size=(64, 64), image_order=1, crop_nonzero=False),
        inference=Inference(patch=(64, 64), mirror_axes=(1,)),
        labels={"none": 0, "benign": 1, "malignant": 2},
    )
    model = LoadedModel(net, task, Source(format="random", file="none", sha256="0" * 64))
    bundle = mx.export(model, target="openvino", out=tmp_path / "bundle")
    with mx.open(bundle) as session, EdgeLibrary(installed_library()).open(bundle) as native:
        for volume in (picture(), picture(1, size=(80, 31))):
            expected = mx.predict(session, volume)
            if kind == "classification":
                np.testing.assert_allclose(native.classify(volume), expected, atol=1e-5)
            else:
                assert len(np.unique(expected)) > 1
                assert (native.segment(volume) != expected).mean() <= 1e-4
