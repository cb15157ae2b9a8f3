"""libmednext_edge against the Python Predictor: every patch that the engine sees, and every label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import mednext_edge as mx
from benchmarks.edge.library import EdgeLibrary, segment_options
from mednext_edge.data.volume import Volume, read_image
from mednext_edge.runtime.predictor import Predictor
from mednext_edge.task import Normalization, Preprocessing, Region, Task
from tests.csrc.edge_bundles import FakeNetwork, fake_task, installed_library, write_fake_bundle

ROTATED = [[0.1, -1.1, 0.05, 3], [-0.9, 0.05, 0.2, -7], [0.1, 0.1, -2.4, 11], [0, 0, 0, 1]]
SWAPPED = [[0, 0, -1.5, 0], [0.8, 0, 0, 0], [0, -0.8, 0, 0], [0, 0, 0, 1]]
THICK = [[-0.7, 0, 0, 5], [0, 0.7, 0, 5], [0, 0, 4.0, 5], [0, 0, 0, 1]]
CT = Normalization(scheme="ct", mean=1.1, sd=0.7, lower=-0.5, upper=3.5)
NONE = Normalization(scheme="none")


def blobs(shape: tuple[int, ...], channels: int = 1, seed: int = 0) -> NDArray[np.float32]:
    """Smooth positive blobs with a hole, in a frame of zeros."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    image = np.zeros((channels, *shape), np.float32)
    for channel in image:
        for _ in range(6):
            centre, width = rng.uniform(-0.6, 0.6, (3, 1, 1, 1)), rng.uniform(0.2, 0.5)
            channel += (rng.uniform(1, 3) * np.exp(-((grid - centre) ** 2).sum(0) / width**2)).astype(np.float32)
        channel[np.linalg.norm(grid, axis=0) > 0.9] = 0
        channel[tuple(slice(n // 2, n // 2 + 2) for n in shape)] = 0
    return image


def compare(library: EdgeLibrary, folder: Path, task: Task, volume: Volume, *, mirror: bool = False) -> None:
    """Patches to float32's rounding, and labels on 99.99 % of the voxels."""
    network = FakeNetwork(task)
    expected = Predictor(network, mirror=mirror).predict(volume)
    trace = folder / "trace"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FAKE_OPENVINO_TRACE", str(trace))
        with library.open(write_fake_bundle(folder / "bundle", task)) as model:
            labels = model.segment(volume, segment_options(mirror=mirror))
    seen = np.fromfile(trace, np.float32).reshape(-1, *network.inputs[0].shape)
    inputs = np.stack(network.inputs)
    assert seen.shape == inputs.shape
    if mirror:  # the same flips in another order
        seen, inputs = (np.sort(x.reshape(len(x), -1) @ np.arange(x[0].size)) for x in (seen, inputs))
    np.testing.assert_allclose(seen, inputs, rtol=2e-5, atol=2e-5)
    assert (labels != expected).sum() <= 1e-4 * labels.size
    assert len(np.unique(expected)) > 1


RECIPES = {
    "defaults": Preprocessing(),
    "masked": Preprocessing(normalization=(Normalization(masked=True),)),
    "rescaled": Preprocessing(normalization=(Normalization(scheme="rescale", masked=True),), crop_nonzero=False),
    "oriented": Preprocessing(orientation="LPS", transpose=(2, 0, 1), normalization=(NONE,)),
    "ct resampled": Preprocessing(orientation="RAS", normalization=(CT,), spacing=(1.3, 1.0, 0.9)),
    "v1": Preprocessing(
        normalization=(Normalization(masked=True),), spacing=(1.2, 0.9, 1.0), normalize_after_resampling=True
    ),
    "transposed spacing": Preprocessing(transpose=(1, 2, 0), spacing=(0.8, 0.8, 1.6)),
    "two channels": Preprocessing(normalization=(NONE, Normalization(masked=True)), spacing=(1.5, 1.5, 1.5)),
    **{f"order {n}": Preprocessing(normalization=(NONE,), spacing=(1.1, 1.3, 0.6), image_order=n) for n in range(6)},
}


@pytest.mark.parametrize("affine", [ROTATED, SWAPPED, THICK], ids=["rotated", "swapped", "thick"])
@pytest.mark.parametrize("name", RECIPES)
def test_recipes(fake_edge: EdgeLibrary, tmp_path: Path, name: str, affine: list[list[float]]) -> None:
    recipe = RECIPES[name]
    volume = Volume(blobs((13, 22, 19), len(recipe.normalization)), np.array(affine))
    compare(fake_edge, tmp_path, fake_task(recipe, average="logits"), volume)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 17), (16, 16, 16), (17, 9, 33)])
@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_sizes_windows_and_mirrors(
    fake_edge: EdgeLibrary, tmp_path: Path, shape: tuple[int, ...], average: str
) -> None:
    volume = Volume(np.random.default_rng(0).uniform(0, 4, (1, *shape)).astype(np.float32), np.diag([1.0, 1, 1, 1]))
    volume.array.flat[0] = 0
    recipe = Preprocessing(normalization=(NONE,), crop_nonzero=False)
    task = fake_task(recipe, average=average, mirror_axes=(0, 2), patch=(16, 12, 15), step=0.4)
    if volume.array.size == 1:
        volume.array.flat[0] = 2
        with fake_edge.open(write_fake_bundle(tmp_path / "one", task)) as model:
            assert model.segment(volume).tolist() == [[[2]]]
        return
    for mirror in (False, True):
        (folder := tmp_path / str(mirror)).mkdir()
        compare(fake_edge, folder, task, volume, mirror=mirror)


def test_slices(fake_edge: EdgeLibrary, tmp_path: Path) -> None:
    recipe = Preprocessing(spacing=(0.9, 1.1), normalization=(Normalization(),))
    volume = Volume(blobs((5, 30, 21)), np.array(THICK))
    compare(fake_edge, tmp_path, fake_task(recipe, patch=(16, 12), mirror_axes=(1,)), volume)
    (mirrored := tmp_path / "mirrored").mkdir()
    compare(fake_edge, mirrored, fake_task(recipe, patch=(16, 12), mirror_axes=(1,)), volume, mirror=True)


def test_stretched_slices(fake_edge: EdgeLibrary, tmp_path: Path) -> None:
    """Every slice of a stack to one size, larger along one axis and smaller along the other."""
    for order in (1, 3):
        recipe = Preprocessing(size=(24, 18), normalization=(CT,), crop_nonzero=False, image_order=order)
        (folder := tmp_path / str(order)).mkdir()
        compare(fake_edge, folder, fake_task(recipe, patch=(24, 18)), Volume(blobs((4, 30, 13)), np.array(ROTATED)))


@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_a_single_logit(fake_edge: EdgeLibrary, tmp_path: Path, average: str) -> None:
    task = fake_task(Preprocessing(normalization=(NONE,)), classes=1, average=average)
    compare(fake_edge, tmp_path, task, Volume(blobs((20, 22, 19)), np.array(SWAPPED)))


@pytest.mark.parametrize("spacing", [None, (1.3, 1.0, 0.9)], ids=["own grid", "resampled"])
@pytest.mark.parametrize("outputs", [(None, None, None), (2, 1, 0), (None,)], ids=["in order", "turned", "one"])
def test_regions(
    fake_edge: EdgeLibrary, tmp_path: Path, outputs: tuple[int | None, ...], spacing: tuple[float, ...] | None
) -> None:
    recipe = Preprocessing(normalization=(NONE,), spacing=spacing)
    values = {1: (1, 2, 3), 3: (2, 3), 2: (2,)} if len(outputs) == 3 else {1: (1,)}
    regions = tuple(
        Region(name=f"größe {of}", values=inside, output=output)
        for (of, inside), output in zip(values.items(), outputs, strict=True)
    )
    task = fake_task(recipe, regions=regions, average="logits", mirror_axes=(0, 2))
    for mirror in (False, True):
        (folder := tmp_path / str(mirror)).mkdir()
        compare(fake_edge, folder, task, Volume(blobs((20, 22, 19)), np.array(SWAPPED)), mirror=mirror)


def test_an_empty_image_is_background(fake_edge: EdgeLibrary, tmp_path: Path) -> None:
    volume = Volume(np.zeros((1, 9, 20, 11), np.float32), np.array(ROTATED))
    task = fake_task(Preprocessing(normalization=(Normalization(masked=True),)))
    with fake_edge.open(write_fake_bundle(tmp_path / "bundle", task)) as model:
        assert not model.segment(volume).any()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float64"])
def test_types(fake_edge: EdgeLibrary, tmp_path: Path, dtype: str) -> None:
    array = (blobs((8, 17, 18)) * 40).astype(dtype)
    volume = Volume(array, np.array(SWAPPED))
    with fake_edge.open(write_fake_bundle(tmp_path / "bundle", fake_task())) as model:
        expected = model.segment(Volume(array.astype(np.float32), volume.affine))
        np.testing.assert_array_equal(model.segment(volume), expected)


@pytest.mark.data
def test_demo_labels_are_those_of_python(hippocampus: Path, demo_bundle: Path) -> None:
    """The shipped hippocampus model on its real data: the same label on 99.99 % of the voxels."""
    cases = sorted((hippocampus / "imagesTr").glob("*.nii.gz"))[:2]
    different = voxels = 0
    with mx.open(demo_bundle) as session, EdgeLibrary(installed_library()).open(demo_bundle) as model:
        for case in cases:
            volume = read_image(case)
            labels = model.segment(volume)
            different += int((labels != mx.predict(session, volume)).sum())
            voxels += labels.size
    assert different <= 1e-4 * voxels
