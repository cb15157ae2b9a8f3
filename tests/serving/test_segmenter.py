"""One bundle for many clients."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import mednext_edge as mx
from mednext_edge.data.volume import Volume
from mednext_edge.errors import IntegrityError, UsageError
from mednext_edge.serving import segmenter as segmenter_module
from mednext_edge.serving.segmenter import Cancelled, Segmenter


@pytest.fixture
def volume() -> Volume:
    array = np.random.default_rng(0).normal(size=(1, 17, 18, 19)).astype(np.float32)
    return Volume(array, np.eye(4))


def test_threads_get_what_one_alone_gets(segmenter: Segmenter, bundle: Path, volume: Volume) -> None:
    with mx.open(bundle) as session:
        expected = mx.predict(session, volume)
    with ThreadPoolExecutor(4) as pool:
        for labels in pool.map(lambda _: segmenter.segment(volume), range(4)):
            np.testing.assert_array_equal(labels, expected)


def test_a_volume_is_given_up_between_two_patches(segmenter: Segmenter, volume: Volume) -> None:
    with pytest.raises(Cancelled):
        segmenter.segment(volume, stop=lambda: True)


@pytest.mark.parametrize("change", ["model.bin", "manifest.json", "replaced"])
def test_a_bundle_that_changed_is_not_used(bundle: Path, tmp_path: Path, volume: Volume, change: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    segmenter = Segmenter(copy)
    if change == "replaced":
        from mednext_edge.bundle import update_bundle

        update_bundle(copy, {"notes.txt": b"another"})
    else:
        (copy / change).write_bytes((copy / change).read_bytes() + b" ")
    with pytest.raises(IntegrityError):
        segmenter.segment(volume)
    segmenter.close()


@pytest.mark.parametrize(
    ("change", "words"), [({"kind": "classification"}, "classification"), ({"in_channels": 4}, "4")]
)
def test_models_that_no_service_can_use(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], words: str
) -> None:
    manifest = segmenter_module.verify(bundle)
    changed = manifest.model_copy(update={"model": manifest.model.model_copy(update=change)})
    monkeypatch.setattr(segmenter_module, "verify", lambda _: changed)
    with pytest.raises(UsageError, match=words):
        Segmenter(bundle)
