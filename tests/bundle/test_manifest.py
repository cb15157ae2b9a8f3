from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mednext_edge.bundle import Manifest, read_manifest, verify
from mednext_edge.bundle.manifest import inside, seal
from mednext_edge.errors import IntegrityError, UsageError
from mednext_edge.task import Normalization, Preprocessing

from .conftest import make_manifest


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and seal it again, as someone who means to would."""
    stated = json.loads((bundle / "manifest.json").read_text())
    change(stated)
    text = json.dumps(stated).encode()
    (bundle / "manifest.json").write_bytes(text)
    (bundle / "manifest.sha256").write_bytes(seal(text))


def test_what_is_written_is_read(bundle: Path) -> None:
    manifest = verify(bundle)
    assert read_manifest(bundle) == manifest
    assert manifest.task == make_manifest().task
    assert {entry.path for entry in manifest.files} == {"model.xml", "model.bin", "report.json", "pictures/a.png"}


def test_manifest_is_strict_json_and_keeps_infinite_bounds() -> None:
    bounds = Preprocessing(normalization=(Normalization(scheme="ct", lower=-100.0),))
    manifest = make_manifest().model_copy(update={"preprocessing": bounds})
    text = manifest.to_json()
    stated = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert stated["schema"] == 1
    assert Manifest.model_validate(stated).preprocessing == bounds


@pytest.mark.parametrize(
    "name", ["manifest.json", "manifest.sha256", "model.xml", "model.bin", "report.json", "pictures/a.png"]
)
@pytest.mark.parametrize("position", [0, -1])
def test_flipped_byte_is_found_in_every_file(bundle: Path, name: str, position: int) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[position] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(IntegrityError, match=Path(name).name):
        verify(bundle)


def test_flips_all_over_the_manifest_are_found(bundle: Path) -> None:
    file = bundle / "manifest.json"
    content = file.read_bytes()
    for position in range(0, len(content), 13):
        file.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        with pytest.raises(IntegrityError):
            verify(bundle)


def test_error_names_file_and_both_digests(bundle: Path) -> None:
    stated = {entry.path: entry.sha256 for entry in read_manifest(bundle).files}
    (bundle / "model.bin").write_bytes(b"other")
    with pytest.raises(IntegrityError) as error:
        verify(bundle)
    assert "model.bin" in str(error.value)
    assert stated["model.bin"] in str(error.value)
    # sha256 of b"other"
    assert "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa" in str(error.value)


def test_truncated_file(bundle: Path) -> None:
    content = (bundle / "model.bin").read_bytes()
    (bundle / "model.bin").write_bytes(content[:-1])
    with pytest.raises(IntegrityError, match=r"model\.bin"):
        verify(bundle)


@pytest.mark.parametrize("length", [0, 1, 100])
def test_truncated_manifest(bundle: Path, length: int) -> None:
    content = (bundle / "manifest.json").read_bytes()
    (bundle / "manifest.json").write_bytes(content[:length])
    with pytest.raises(IntegrityError, match="JSON"):
        read_manifest(bundle)


def test_missing_file(bundle: Path) -> None:
    (bundle / "model.bin").unlink()
    with pytest.raises(IntegrityError, match=r"model\.bin is missing"):
        read_manifest(bundle)


def test_missing_seal(bundle: Path) -> None:
    (bundle / "manifest.sha256").unlink()
    with pytest.raises(IntegrityError, match=r"manifest\.sha256 states nothing"):
        verify(bundle)


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "a/../../secret", "..\\secret", "C:secret", "", ".", "a//b"]
)
def test_path_outside_is_refused(bundle: Path, path: str) -> None:
    (bundle.parent / "secret").write_bytes(b"")
    rewrite(bundle, lambda m: m["files"][0].update(path=path))
    with pytest.raises(IntegrityError, match="not a plain path"):
        read_manifest(bundle)


def test_link_out_is_refused(bundle: Path) -> None:
    outside = bundle.parent / "model.bin"
    (bundle / "model.bin").rename(outside)
    (bundle / "model.bin").symlink_to(outside)
    with pytest.raises(IntegrityError, match="outside the bundle"):
        read_manifest(bundle)


def test_folder_link_out_is_refused(bundle: Path) -> None:
    (bundle / "pictures").rename(bundle.parent / "pictures")
    (bundle / "pictures").symlink_to(bundle.parent / "pictures")
    with pytest.raises(IntegrityError, match="outside the bundle"):
        read_manifest(bundle)


def test_bundle_behind_a_link_is_read(bundle: Path) -> None:
    (bundle.parent / "link").symlink_to(bundle)
    assert verify(bundle.parent / "link") == verify(bundle)


@pytest.mark.parametrize("schema", [0, 2, "1", 1.0, True, None])
def test_unknown_schema(bundle: Path, schema: object) -> None:
    rewrite(bundle, lambda m: m.update(schema=schema))
    with pytest.raises(IntegrityError, match="schema"):
        read_manifest(bundle)


def test_unknown_field(bundle: Path) -> None:
    rewrite(bundle, lambda m: m["engine"].update(shell="rm"))
    with pytest.raises(IntegrityError, match=r"engine\.shell"):
        read_manifest(bundle)


def test_engine_must_be_listed(bundle: Path) -> None:
    rewrite(bundle, lambda m: m["engine"].update(file="elsewhere.xml"))
    with pytest.raises(IntegrityError, match=r"elsewhere\.xml is not among"):
        read_manifest(bundle)


def test_file_listed_twice(bundle: Path) -> None:
    rewrite(bundle, lambda m: m["files"].append(m["files"][0]))
    with pytest.raises(IntegrityError, match="twice"):
        read_manifest(bundle)


@pytest.mark.parametrize("name", ["other.bin", "pictures/model.ONNX", "lib.so"])
def test_unlisted_engine_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"")
    with pytest.raises(IntegrityError, match="not listed"):
        verify(bundle)


def test_unlisted_note_is_allowed(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("installed on Monday")
    verify(bundle)


@pytest.mark.parametrize("text", ["[]", "1", "null", '{"schema": 1}', "[" * 100_000])
def test_json_that_is_no_manifest(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(IntegrityError):
        read_manifest(bundle)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing"):
        read_manifest(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="a file"):
        read_manifest(tmp_path / "file")
    with pytest.raises(UsageError, match="not a bundle"):
        read_manifest(tmp_path)


def test_inside_accepts_plain_paths() -> None:
    for path in ("model.xml", "pictures/case 1.png", "a/b/c", "..dots"):
        assert inside(path) == path
