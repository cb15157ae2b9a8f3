"""The number of threads that a bundle was tuned to: when it is taken, and when the engine chooses."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mednext_edge as mx
from mednext_edge.bundle import BundleWriter, read_manifest
from mednext_edge.environment import environment, machine_digest
from mednext_edge.errors import IntegrityError
from mednext_edge.runtime import threads
from mednext_edge.runtime.threads import TUNING, ThreadCount, ThreadTuning, recorded_threads

Tuned = Callable[..., Path]


def tuning(**changes: Any) -> str:
    """A `tuning.json` of this machine that says one thread."""
    found = ThreadTuning(
        key="0" * 64,
        machine=machine_digest(environment()),
        patch=(16, 16, 16),
        own=2,
        chosen=1,
        counts=(ThreadCount(threads=1, against=2, ratio=(0.8, 0.7, 0.9), p50_ms=8, against_ms=10, pairs=8),),
        seconds=1.0,
    )
    return json.dumps({"threads": json.loads(found.model_copy(update=changes).model_dump_json())})


@pytest.fixture
def tuned(tiny_bundle: Path, tmp_path: Path) -> Tuned:
    """The tiny bundle with such a file in it, sealed anew."""
    threads._tell.cache_clear()

    def bundle(text: str) -> Path:
        out = tmp_path / f"tuned-{len(list(tmp_path.iterdir()))}"
        writer = BundleWriter(out, force=False)
        manifest = read_manifest(tiny_bundle)
        with writer as folder:
            for entry in manifest.files:
                shutil.copy(tiny_bundle / entry.path, folder / entry.path)
            (folder / TUNING).write_text(text)
            writer.commit(manifest.model_copy(update={"files": ()}))
        return out

    return bundle


def test_on_the_machine_that_was_measured(tuned: Tuned) -> None:
    bundle = tuned(tuning())
    with mx.open(bundle) as session:
        assert (session.threads, session.used_threads) == (1, 1)
    with mx.open(bundle, threads=2) as session:
        assert session.threads == 2, "a number that was given goes first"


@pytest.mark.parametrize(
    ("text", "patch", "words"),
    [
        (tuning(machine="1" * 64), (16, 16, 16), "another machine"),
        (tuning(), (32, 16, 16), r"measured at \(16, 16, 16\)"),
    ],
)
def test_elsewhere_it_is_ignored_and_said_once(
    tuned: Tuned, text: str, patch: tuple[int, ...], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = tuned(text)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with mx.open(bundle, patch=patch) as session:
                assert session.threads is None
    assert [record.name for record in caplog.records] == [threads.__name__]
    assert caplog.records[0].getMessage().endswith("the engine chooses")
    assert re.search(words, caplog.text)


def test_nothing_to_take(tuned: Tuned, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No file, one from before threads were tuned, and one whose engine chose best itself."""
    assert recorded_threads(tmp_path, (16, 16, 16)) is None
    for text in ('{"blocks": []}', tuning(chosen=None, machine="1" * 64)):
        with caplog.at_level(logging.WARNING), mx.open(tuned(text)) as session:
            assert session.threads is None
    assert not caplog.records


@pytest.mark.parametrize("text", ["{", "[]", '{"threads": {"chosen": 4}}'])
def test_a_file_that_is_none(tuned: Tuned, text: str) -> None:
    with pytest.raises(IntegrityError, match=r"tuning\.json cannot be read .*; export again"):
        mx.open(tuned(text))


def test_a_file_without_a_digest_decides_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / TUNING).write_text(tuning())
    with mx.open(tmp_path / "bundle") as session:
        assert session.threads is None
