"""`mednext-edge inspect` and `mednext-edge verify`."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest

from .conftest import Cli


def test_inspect_checkpoint(edge: Cli, checkpoint: Path) -> None:
    done = edge("inspect", checkpoint)
    assert (done.code, done.out) == (0, "")
    for words in ("mednext custom, kernel 3, 3-D", "0 background, 1 one, 2 two", "16 x 16 x 16", "weights.safetensors"):
        assert words in done.err
    found = edge("inspect", checkpoint, "--json").json
    assert (found["format"], found["task"]["model"]["classes"]) == ("mednext-edge", 3)


def test_inspect_bundle(edge: Cli, bundle: Path) -> None:
    done = edge("inspect", bundle)
    assert done.code == 0
    assert "openvino, fp32" in done.err
    assert "accuracy gate" in done.err
    assert edge("inspect", bundle, "--json").json["schema"] == 1


def test_inspect_shows_what_was_assumed(edge: Cli, checkpoint: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    shutil.copy(checkpoint / "weights.safetensors", bare)
    done = edge("inspect", bare)
    assert done.code == 0
    assert "note: the file says nothing of images" in done.err


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04truncated"])
def test_inspect_other_files(edge: Cli, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    done = edge("inspect", file)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")
    assert str(file) in done.err


def test_hostile_pickle_is_named_and_not_run(edge: Cli, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("run",))

    file = tmp_path / "weights.pth"
    file.write_bytes(pickle.dumps(Hostile()))
    done = edge("inspect", file)
    assert (done.code, done.out) == (1, "")
    assert "builtins.print" in done.err


def test_unknown_demo(edge: Cli) -> None:
    done = edge("inspect", "demo:hipocampus")
    assert done.code == 2
    assert "unknown demo model `hipocampus`" in done.err


def test_verify(edge: Cli, bundle: Path) -> None:
    done = edge("verify", bundle)
    assert (done.code, done.out) == (0, "")
    assert "every digest matches" in done.err
    found = edge("verify", bundle, "--json").json
    assert found["verified"] is True
    assert {entry["path"] for entry in found["files"]} >= {"model.xml", "model.bin"}


@pytest.mark.parametrize("command", ["verify", "predict", "validate", "bench"])
def test_a_flipped_byte_is_exit_6(edge: Cli, bundle: Path, dataset: Path, tmp_path: Path, command: str) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(bundle, damaged)
    content = bytearray((damaged / "model.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / "model.bin").write_bytes(content)
    more = {"predict": ["-i", dataset / "imagesTr", "-o", tmp_path / "out"], "validate": ["--data", dataset]}
    done = edge(command, damaged, *more.get(command, []))
    assert (done.code, done.out) == (6, "")
    assert "model.bin" in done.err
    assert not (tmp_path / "out").exists()
