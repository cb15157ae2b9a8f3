"""Slab streaming: the labels of the whole volume, patches before its end where the recipe allows it, and why not."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.edge.library import EdgeLibrary, EdgeStream
from benchmarks.edge.library import segment_options as options
from mednext_edge.data.volume import Volume
from mednext_edge.task import Normalization, Preprocessing
from tests.csrc.edge_bundles import fake_task, write_fake_bundle

NONE = (Normalization(scheme="none"),)
CT = (Normalization(scheme="ct", mean=1, sd=1.5, lower=0.2, upper=3.6),)
RAS = np.diag([1.0, 1, 1, 1])
SAGITTAL = np.array([[0, 0, -1.5, 0], [0.8, 0, 0, 0], [0, -0.8, 0, 0], [0, 0, 0, 1]])
THICK = np.diag([-0.7, 0.7, 4.0, 1])


def volume_of(affine: np.ndarray, shape: tuple[int, int, int] = (40, 20, 22)) -> Volume:
    rng = np.random.default_rng(0)
    return Volume(rng.uniform(0.1, 4, (1, *shape)).astype(np.float32), affine)


def wait_for(stream: EdgeStream, patches: int) -> None:
    """Until so many patches have run; the stream's thread needs no more than moments."""
    end = time.monotonic() + 60
    while stream.describe().patches_done < patches:
        assert time.monotonic() < end, stream.describe().patches_done
        time.sleep(0.002)


@pytest.mark.parametrize("order", ["forward", "backward", "interleaved"])
@pytest.mark.parametrize(
    ("recipe", "affine"),
    [
        (Preprocessing(normalization=NONE), RAS),
        (Preprocessing(normalization=CT, orientation="LPI", transpose=(1, 0, 2)), SAGITTAL),
        (Preprocessing(normalization=CT, spacing=(3.3, 0.9, 0.8)), THICK),
        (Preprocessing(normalization=CT, spacing=(6.1, 0.9, 0.8), normalize_after_resampling=True), THICK),
    ],
    ids=["plain", "turned", "thick", "thick v1"],
)
def test_patches_run_before_the_last_slice(
    fake_edge: EdgeLibrary, tmp_path: Path, recipe: Preprocessing, affine: np.ndarray, order: str
) -> None:
    volume = volume_of(affine)
    z = volume.spatial[0]
    slices = {"forward": range(z), "backward": range(z)[::-1], "interleaved": [*range(0, z, 2), *range(1, z, 2)]}[order]
    bundle = write_fake_bundle(tmp_path / "bundle", fake_task(recipe, average="logits"))
    with fake_edge.open(bundle) as model, model.stream(volume) as stream:
        for position in slices[:-1]:
            stream.push(position, 1)
        wait_for(stream, 1)
        assert stream.describe().reason == b""
        stream.push(slices[-1], 1)
        labels = stream.finish()
        info = stream.describe()
        assert 0 < info.patches_early < info.patches == info.patches_done
        assert info.patches_undone == 0
        expected = model.segment(volume)
    assert (labels != expected).sum() <= 1e-4 * labels.size


@pytest.mark.parametrize(
    ("recipe", "affine", "reason"),
    [
        (Preprocessing(), RAS, b"the normalisation takes its statistics from the whole volume"),
        (Preprocessing(normalization=CT, spacing=(1.3, 1, 1)), RAS, b"the image is resampled across its slices"),
    ],
)
def test_why_nothing_runs_early(
    fake_edge: EdgeLibrary, tmp_path: Path, recipe: Preprocessing, affine: np.ndarray, reason: bytes
) -> None:
    volume = volume_of(affine)
    with fake_edge.open(write_fake_bundle(tmp_path / "bundle", fake_task(recipe))) as model:
        with model.stream(volume) as stream:
            for position in range(0, 40, 8):
                stream.push(position, 8)
            assert stream.describe().reason == reason
            labels = stream.finish()
            assert stream.describe().patches_early == 0
        np.testing.assert_array_equal(labels, model.segment(volume))


@pytest.mark.parametrize("border", ["last slice", "first slice", "last row"])
def test_a_wrong_guess_costs_time_alone(fake_edge: EdgeLibrary, tmp_path: Path, border: str) -> None:
    """Empty borders are cropped away, which moves the patches: what ran for the whole image runs again."""
    volume = volume_of(RAS)
    if border == "last slice":
        volume.array[0, -1] = 0
    elif border == "first slice":
        volume.array[0, 0] = 0
    else:
        volume.array[0, :, -1] = 0
    seen: list[tuple[int, int]] = []
    progress = options(progress=lambda done, total: seen.append((done, total)) is None)
    with fake_edge.open(write_fake_bundle(tmp_path / "bundle", fake_task(Preprocessing(normalization=NONE)))) as model:
        with model.stream(volume, progress) as stream:
            stream.push(0, 39)
            if border == "last slice":
                wait_for(stream, 1)
            stream.push(39, 1)
            labels = stream.finish()
            info = stream.describe()
            assert (info.patches_undone > 0) == (border == "last slice")
            assert info.patches_early == 0
        np.testing.assert_array_equal(labels, model.segment(volume))
        assert seen[-1][0] == seen[-1][1]


def test_slices(fake_edge: EdgeLibrary, tmp_path: Path) -> None:
    """A 2-D network runs every slice as it comes."""
    volume = volume_of(RAS, (5, 20, 22))
    task = fake_task(Preprocessing(normalization=NONE, crop_nonzero=False), patch=(16, 12))
    with fake_edge.open(write_fake_bundle(tmp_path / "bundle", task)) as model, model.stream(volume) as stream:
        for position in range(5):
            stream.push(position, 1)
            wait_for(stream, 6 * (position + 1))
        np.testing.assert_array_equal(stream.finish(), model.segment(volume))
