"""What libmednext_edge refuses, by name: bundles that do not hold, images that do not fit, engines that fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.edge.library import (
    BACKEND,
    BUNDLE,
    CANCELLED,
    DATA,
    ENGINE,
    INTEGRITY,
    MEMORY,
    OK,
    EdgeLibrary,
    Failure,
)
from benchmarks.edge.library import segment_options as options
from mednext_edge.bundle import verify
from mednext_edge.bundle.manifest import MANIFEST, SEAL, seal
from mednext_edge.data.volume import Volume
from mednext_edge.errors import IntegrityError
from mednext_edge.task import Preprocessing, Region
from tests.csrc.edge_bundles import fake_task, write_fake_bundle

VOLUME = Volume(np.random.default_rng(0).uniform(0, 4, (1, 20, 9, 17)).astype(np.float32), np.diag([-1.0, 1, 2, 1]))


def opened(library: EdgeLibrary, folder: Path) -> tuple[int, str]:
    """Status and message of opening a folder."""
    try:
        with library.open(folder):
            return OK, ""
    except Failure as failure:
        return failure.status, str(failure)


def reseal(folder: Path, text: bytes) -> None:
    """Another manifest, under a seal that fits it."""
    (folder / MANIFEST).write_bytes(text)
    (folder / SEAL).write_bytes(seal(text))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    stated = json.loads((folder / MANIFEST).read_bytes())
    change(stated)
    reseal(folder, json.dumps(stated).encode())


def put(folder: Path, place: str, value: Any) -> None:
    """Another value at `key.key.index` of a manifest."""
    *parents, last = place.split(".")

    def change(stated: Any) -> None:
        for key in parents:
            stated = stated[int(key) if key.isdigit() else key]
        stated[last] = value

    edit(folder, change)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundle", fake_task())


def test_describe(fake_edge: EdgeLibrary, bundle: Path) -> None:
    with fake_edge.open(bundle) as model:
        info = model.describe()
        assert (info.name, info.target, info.precision, info.provider) == (
            b"fake",
            b"openvino",
            b"fp32",
            b"openvino 0.0.0",
        )
        assert (info.channels, info.classes, info.spatial_dims, list(info.patch)) == (1, 4, 3, [16, 16, 16])
        assert info.needs_whole_volume == 1
        import ctypes

        name = ctypes.create_string_buffer(100)
        fake_edge.call("label_name", model.handle, 2, name, ctypes.c_size_t(100))
        assert name.value.decode() == "größe 2"


def test_not_a_bundle(fake_edge: EdgeLibrary, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        status, message = opened(fake_edge, folder)
        assert status == BUNDLE
        assert "is not a bundle" in message


def flip_byte(folder: Path) -> None:
    content = bytearray((folder / "model.bin").read_bytes())
    content[500] ^= 1
    (folder / "model.bin").write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (flip_byte, "model.bin of .* has SHA-256"),
    "cut": (lambda folder: (folder / "model.bin").write_bytes(b""), "model.bin of .* has 0 bytes"),
    "missing": (lambda folder: (folder / "model.bin").unlink(), "model.bin is missing"),
    "added": (lambda folder: (folder / "evil.SO").write_bytes(b""), "evil.SO in .* is not listed"),
    "unsealed": (lambda folder: (folder / SEAL).unlink(), "states another or none"),
    "other seal": (lambda folder: (folder / SEAL).write_bytes(seal(b"")), "states another or none"),
    "not json": (lambda folder: reseal(folder, b"{"), "expected a key"),
    "long": (lambda folder: reseal(folder, b" " * (5 << 20)), "more than 4194304 bytes"),
    "deep": (lambda folder: reseal(folder, b"[" * 100000), "at most 32 levels"),
    "empty": (lambda folder: reseal(folder, b""), "expected a value"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(fake_edge: EdgeLibrary, bundle: Path, name: str) -> None:
    damage, expected = DAMAGE[name]
    damage(bundle)
    with pytest.raises(Failure, match=expected) as caught, fake_edge.open(bundle):
        pass
    assert caught.value.status == INTEGRITY
    with pytest.raises(IntegrityError):
        verify(bundle)


def test_a_link_out_of_the_bundle(fake_edge: EdgeLibrary, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes((bundle / "model.bin").read_bytes())
    (bundle / "model.bin").unlink()
    (bundle / "model.bin").symlink_to(tmp_path / "outside")
    status, message = opened(fake_edge, bundle)
    assert status == INTEGRITY
    assert "is a link to a place outside" in message


CHANGES: dict[str, Any] = {
    "schema": 2,
    "target": None,
    "name": 7,
    "surprise": 1,
    "labels.extra": 9,
    "labels.background": 1,
    "engine.file": "other.xml",
    "engine.status": "maybe",
    "model.spatial_dims": 4,
    "model.family": None,
    "model.kind": "detection",
    "output.layout": "NC",
    "preprocessing.colour": "CMYK",
    "source.file": 3,
    "gate.status": "perhaps",
    "preprocessing.normalization": [],
    "model.classes": 0,
    "input.dtype": "float16",
    "input.patch": [16, 16],
    "inference.step": 0,
    "inference.mirror_axes": [3],
    "inference.average": "mean",
    "preprocessing.orientation": "RAR",
    "preprocessing.transpose": [0, 1, 1],
    "preprocessing.spacing": [1, 0, 1],
    "preprocessing.image_order": 6,
    "preprocessing.anisotropy_threshold": "3",
    "preprocessing.crop_nonzero": 1,
    "preprocessing.resampling": "new",
    "preprocessing.normalization.0.scheme": "histogram",
    "preprocessing.normalization.0.sd": 0,
    "preprocessing.normalization.0.lower": "NaN",
    "files.0.path": "../model.bin",
    "files.0.sha256": "0" * 63,
    "files.0.size": -1,
    "files.1.path": "model.bin",
}


@pytest.mark.parametrize("place", CHANGES)
def test_the_field_is_named(fake_edge: EdgeLibrary, bundle: Path, place: str) -> None:
    put(bundle, place, CHANGES[place])
    status, message = opened(fake_edge, bundle)
    assert status == INTEGRITY
    *parents, last = place.split(".")
    assert last in message or ".".join(parents) in message


REGIONS = tuple(Region(name=f"größe {of}", values=inside) for of, inside in ((1, (1, 2, 3)), (3, (2, 3)), (2, (2,))))
OF_REGIONS: dict[str, Any] = {
    "regions.0.name": "background",
    "regions.1.name": "größe 1",
    "regions.2.values": [3],
    "regions.0.values": [1, 4],
    "regions.0.extra": 1,
    "regions.0.output": 1,
    "regions.2.output": 3,
    "regions": [{"name": "größe 1", "values": [1]}],
    "inference.average": "softmax",
    "labels.größe 4": 4,
}


@pytest.mark.parametrize("place", OF_REGIONS)
def test_the_field_of_regions_is_named(fake_edge: EdgeLibrary, tmp_path: Path, place: str) -> None:
    folder = write_fake_bundle(tmp_path / "bundle", fake_task(regions=REGIONS, average="logits"))
    with fake_edge.open(folder) as model:
        assert model.describe().classes == 4
    put(folder, place, OF_REGIONS[place])
    status, message = opened(fake_edge, folder)
    assert status == INTEGRITY
    assert any(word in message for word in (place, "regions", "labels"))
    with pytest.raises(IntegrityError):
        verify(folder)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_manifests_never_pass_where_python_refuses(
    fake_edge: EdgeLibrary, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Bytes changed at random, under a fitting seal: no crash, and nothing opened that Python would not open."""
    kind = data.draw(st.sampled_from(("segmentation", "classification", "regions")))
    folder = tmp_path_factory.getbasetemp() / "mutated" / kind
    if not folder.exists():
        tasks = {
            "segmentation": fake_task,
            "classification": partial(
                fake_task, Preprocessing(colour="grey", size=(16, 12)), patch=(16, 12), kind="classification"
            ),
            "regions": partial(fake_task, regions=REGIONS, average="logits"),
        }
        write_fake_bundle(folder, tasks[kind]())
        (folder / "original").write_bytes((folder / MANIFEST).read_bytes())
    text = bytearray((folder / "original").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    reseal(folder, bytes(text))
    status, _ = opened(fake_edge, folder)
    assert status in (OK, INTEGRITY, BACKEND)  # another target
    if status == OK:
        verify(folder)


def test_images_that_do_not_fit(fake_edge: EdgeLibrary, bundle: Path) -> None:
    odd = VOLUME.array.copy()
    odd[0, 3, 4, 5:7] = np.nan
    singular = np.diag([1.0, 1, 0, 1])
    tilted = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    beyond = np.full((1, 3, 3, 3), 1e300)
    cases = [
        (Volume(odd, VOLUME.affine), "2 voxels that are NaN"),
        (Volume(beyond, VOLUME.affine), "27 voxels .* beyond float32"),
        (Volume(VOLUME.array, singular), "no inverse"),
        (Volume(VOLUME.array, tilted), "no inverse"),
        (Volume(VOLUME.array, VOLUME.affine * np.nan), "holds NaN"),
        (Volume(np.zeros((2, 3, 3, 3), np.float32), VOLUME.affine), "2 channels; expected 1"),
        (Volume(np.zeros((1, 0, 3, 3), np.float32), VOLUME.affine), r"shape \(0, 3, 3\)"),
    ]
    with fake_edge.open(bundle) as model:
        for volume, expected in cases:
            with pytest.raises(Failure, match=expected) as caught:
                model.segment(volume)
            assert caught.value.status == DATA
        assert model.segment(VOLUME).max() < 4


def test_an_affine_in_metres(fake_edge: EdgeLibrary, tmp_path: Path) -> None:
    """Resampling to a target in millimetres would fill the machine: refused before anything is allocated."""
    task = fake_task(Preprocessing(spacing=(1, 1, 1)))
    with fake_edge.open(write_fake_bundle(tmp_path / "bundle", task)) as model:
        for scale, status in ((1e3, DATA), (2e2, MEMORY)):
            with pytest.raises(Failure, match="must be in millimetres") as caught:
                model.segment(Volume(VOLUME.array, np.diag([scale, scale, scale, 1])))
            assert caught.value.status == status


@pytest.mark.parametrize(("words", "expected"), [("nan", "NaN or infinite logits"), ("fail", "failed to run a patch")])
def test_engines_that_fail(fake_edge: EdgeLibrary, tmp_path: Path, words: str, expected: str) -> None:
    with fake_edge.open(write_fake_bundle(tmp_path / "bundle", fake_task(), words)) as model:
        with pytest.raises(Failure, match=expected) as caught:
            model.segment(VOLUME)
        assert caught.value.status == ENGINE


def test_cancelled_between_patches(fake_edge: EdgeLibrary, bundle: Path) -> None:
    seen: list[tuple[int, int]] = []

    def stop_at_two(done: int, total: int) -> bool:
        seen.append((done, total))
        return done < 2

    with fake_edge.open(bundle) as model:
        with pytest.raises(Failure, match="after 2 of 4 patches") as caught:
            model.segment(VOLUME, options(progress=stop_at_two))
        assert caught.value.status == CANCELLED
        assert seen == [(1, 4), (2, 4)]
        with pytest.raises(Failure) as caught:
            model.segment(
                VOLUME, options(progress=lambda done, total: bool(fake_edge.status("cancel", model.handle)) or True)
            )
        assert caught.value.status == CANCELLED
        model.segment(VOLUME)
