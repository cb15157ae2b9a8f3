"""Renewing parts of a bundle in place: reports and gate, or anything at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mednext_edge.bundle import Gate, Manifest, edit_bundle, read_manifest, update_bundle, verify
from mednext_edge.errors import ExportError, IntegrityError, UsageError

from .conftest import names, snapshot


def test_update_renews_reports_and_gate(bundle: Path) -> None:
    engine = (bundle / "model.bin").stat().st_ino
    (bundle / "notes.txt").write_text("mine")
    gate = Gate(status="failed", metric="dice", max_drop=0.005, drop=0.1)
    written = update_bundle(bundle, {"report.json": b'{"new": 1}', "pictures/b.png": b"b"}, gate)
    assert verify(bundle) == written
    assert written.gate == gate
    assert (bundle / "report.json").read_bytes() == b'{"new": 1}'
    assert (bundle / "pictures" / "a.png").is_file()
    assert (bundle / "notes.txt").read_text() == "mine"
    assert (bundle / "model.bin").stat().st_ino == engine, "the engine was copied, not linked"
    assert update_bundle(bundle, {}).gate == gate
    assert names(bundle.parent) == {bundle.name}


def test_update_without_hard_links(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    update_bundle(bundle, {"report.md": b"x"})
    verify(bundle)


def test_update_gives_no_fresh_digest_to_damage(bundle: Path) -> None:
    (bundle / "model.bin").write_bytes(b"damaged")
    before = snapshot(bundle)
    with pytest.raises(IntegrityError, match=r"model\.bin"):
        update_bundle(bundle, {"report.md": b"x"})
    assert snapshot(bundle) == before


@pytest.mark.parametrize("name", ["model.bin", "../out", "manifest.json", "manifest.sha256"])
def test_update_takes_reports_only(bundle: Path, name: str) -> None:
    before = snapshot(bundle)
    with pytest.raises(ValueError, match=name.removeprefix("../")):
        update_bundle(bundle, {name: b"x"})
    assert snapshot(bundle) == before


def test_update_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        update_bundle(tmp_path / "none", {})
    with pytest.raises(UsageError):
        read_manifest(tmp_path / "none")


# --- edits -----------------------------------------------------------------------------------------


def test_edit_replaces_an_engine(bundle: Path) -> None:
    weights = (bundle / "model.bin").stat().st_ino

    def edit(folder: Path, manifest: Manifest) -> Manifest:
        assert folder != bundle
        # What is to be written anew is not there, everything else is.
        assert names(folder) == {"model.bin", "pictures", "notes"}
        assert manifest == before
        (folder / "model.plan").write_bytes(b"plan")
        return manifest.model_copy(
            update={"engine": manifest.engine.model_copy(update={"file": "model.plan"}), "precision": "fp16"}
        )

    (bundle / "notes").mkdir()
    (bundle / "notes" / "mine.txt").write_text("mine")
    before = verify(bundle)
    written = edit_bundle(bundle, edit, replaced=["model.xml", "report.json", "not there.md"])
    assert verify(bundle) == written
    assert (written.engine.file, written.precision) == ("model.plan", "fp16")
    listed = {"model.plan", "model.bin", "pictures/a.png", "notes/mine.txt"}
    assert {entry.path for entry in written.files} == listed
    assert (bundle / "model.bin").stat().st_ino == weights
    assert names(bundle.parent) == {bundle.name}


def test_edit_behind_a_link_and_from_inside(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = bundle.with_name("link")
    link.symlink_to(bundle)
    edit_bundle(link, lambda folder, manifest: manifest.model_copy(update={"name": "first"}))
    assert link.is_symlink()
    assert verify(bundle).name == "first"
    monkeypatch.chdir(bundle)
    edit_bundle(Path(), lambda folder, manifest: manifest.model_copy(update={"name": "second"}))
    assert verify(bundle).name == "second"
    assert names(bundle.parent) == {bundle.name, "link"}


def test_the_bundle_is_whole_while_it_is_edited(bundle: Path) -> None:
    def edit(folder: Path, manifest: Manifest) -> Manifest:
        (folder / "model.xml").write_bytes(b"<other/>")
        assert verify(bundle) == before
        return manifest

    before = verify(bundle)
    edit_bundle(bundle, edit, replaced=["model.xml"])
    assert (bundle / "model.xml").read_bytes() == b"<other/>"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("the builder crashed"), RuntimeError),
        (OSError(errno.ENOSPC, "No space left on device"), ExportError),
    ],
)
def test_an_edit_that_fails_changes_nothing(bundle: Path, error: BaseException, kind: type[BaseException]) -> None:
    def edit(folder: Path, _: Manifest) -> Manifest:
        (folder / "model.xml").write_bytes(b"half")
        raise error

    before = snapshot(bundle)
    with pytest.raises(kind):
        edit_bundle(bundle, edit, replaced=["model.xml"])
    assert snapshot(bundle) == before
    assert names(bundle.parent) == {bundle.name}


def test_an_edit_without_an_engine_changes_nothing(bundle: Path) -> None:
    before = snapshot(bundle)
    with pytest.raises(ValueError, match=r"model\.xml was not written"):
        edit_bundle(bundle, lambda folder, manifest: manifest, replaced=["model.xml"])
    assert snapshot(bundle) == before


def test_damage_is_found_before_anything_is_edited(bundle: Path) -> None:
    def never(*_: object) -> Manifest:
        raise AssertionError("a damaged bundle was edited")

    (bundle / "model.bin").write_bytes(b"damaged")
    before = snapshot(bundle)
    with pytest.raises(IntegrityError, match=r"model\.bin"):
        edit_bundle(bundle, never, replaced=["model.bin"])
    assert snapshot(bundle) == before
    with pytest.raises(UsageError):
        edit_bundle(bundle.parent / "none", never)
