from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from mednext_edge.bundle import BundleWriter, Gate, swap, update_bundle, verify
from mednext_edge.errors import ExportError, UsageError

from .conftest import make_manifest, names, snapshot, write


def fork(work: Callable[[], object]) -> int:
    """Run `work` in a child process; -> its id."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def die(*_: object) -> None:
    os.kill(os.getpid(), 9)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def test_nothing_shows_before_commit(tmp_path: Path) -> None:
    writer = BundleWriter(tmp_path / "deep" / "out")
    with writer as folder:
        (folder / "model.xml").write_bytes(b"x")
        assert not (tmp_path / "deep" / "out").exists()
        writer.commit(make_manifest())
        assert (tmp_path / "deep" / "out" / "manifest.json").is_file()
    assert names(tmp_path / "deep") == {"out"}


def test_block_without_commit_leaves_nothing(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "out") as folder:
        (folder / "model.xml").write_bytes(b"x")
    assert not names(tmp_path)


def test_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), BundleWriter(tmp_path / "out") as folder:
        (folder / "model.xml").write_bytes(b"x")
        raise KeyboardInterrupt
    assert not names(tmp_path)


def test_exception_leaves_the_old_bundle(bundle: Path) -> None:
    before = snapshot(bundle)
    with pytest.raises(RuntimeError, match="converter"), BundleWriter(bundle, force=True) as folder:
        (folder / "model.xml").write_bytes(b"x")
        raise RuntimeError("the converter failed")
    assert snapshot(bundle) == before
    assert names(bundle.parent) == {bundle.name}


def test_commit_needs_the_engine(tmp_path: Path) -> None:
    writer = BundleWriter(tmp_path / "out")
    with pytest.raises(ValueError, match=r"model\.xml was not written"), writer as folder:
        (folder / "model.bin").write_bytes(b"x")
        writer.commit(make_manifest())
    assert not names(tmp_path)


def test_links_are_not_packed(tmp_path: Path) -> None:
    writer = BundleWriter(tmp_path / "out")
    with pytest.raises(ValueError, match="no links"), writer as folder:
        (folder / "model.xml").symlink_to("/etc/passwd")
        writer.commit(make_manifest())


def test_existing_bundle_needs_force(bundle: Path) -> None:
    before = snapshot(bundle)
    with pytest.raises(UsageError, match="--force"):
        write(bundle)
    assert snapshot(bundle) == before
    write(bundle, force=True, name="second")
    assert verify(bundle).name == "second"
    assert names(bundle.parent) == {bundle.name}


@pytest.mark.parametrize("content", [{"thesis.doc": "years"}, {"manifest.json": '{"name": "a web app"}'}])
def test_other_folder_is_never_replaced(tmp_path: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    for force in (False, True):
        with pytest.raises(UsageError, match="never replaced"):
            write(tmp_path, force=force)
    assert names(tmp_path) == set(content)


def test_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        write(tmp_path / "out", force=True)


def test_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    verify(tmp_path / "out")


def test_link_to_a_bundle_is_followed(bundle: Path) -> None:
    link = bundle.parent / "current"
    link.symlink_to(bundle)
    write(link, force=True, name="second")
    assert link.is_symlink()
    assert verify(bundle).name == "second"


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="choose another --out"):
        write(tmp_path / "file" / "out")


def test_bundle_written_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    writer = BundleWriter(tmp_path / "out")
    with pytest.raises(UsageError, match="already holds"), writer as folder:
        (folder / "model.xml").write_bytes(b"late")
        write(tmp_path / "out", name="first")
        writer.commit(make_manifest("second"))
    assert verify(tmp_path / "out").name == "first"
    assert names(tmp_path) == {"out"}


def test_without_atomic_exchange(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "exchange", lambda *_: False)
    write(bundle, force=True, name="second")
    assert verify(bundle).name == "second"
    assert names(bundle.parent) == {bundle.name}


# --- full disks ------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_full(bundle: Path) -> None:
    before = snapshot(bundle)
    with pytest.raises(ExportError, match=r"3\.0 MB written.* MB are free"), BundleWriter(bundle, force=True) as folder:
        (folder / "model.bin").write_bytes(bytes(3_000_000))
        Path("/dev/full").write_bytes(b"x")
    assert snapshot(bundle) == before
    assert names(bundle.parent) == {bundle.name}


@pytest.mark.parametrize("words", ["basic_ios::clear: iostream error", "write: No space left on device"])
def test_disk_full_in_a_native_library(tmp_path: Path, words: str) -> None:
    with pytest.raises(ExportError, match="is full"), BundleWriter(tmp_path / "out"):
        raise RuntimeError(words)
    assert not names(tmp_path)


def test_openvino_on_a_full_disk(small_disk: Path) -> None:
    openvino = pytest.importorskip("openvino")
    opset = openvino.opset13
    x = opset.parameter([1, 200_000], np.float32)
    weights = np.random.default_rng(0).normal(size=(1, 200_000)).astype(np.float32)
    model = openvino.Model([opset.add(x, opset.constant(weights))], [x])
    with pytest.raises(ExportError, match="is full"), BundleWriter(small_disk / "out") as folder:
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    assert not names(small_disk)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_really_full_disk(small_disk: Path) -> None:
    write(small_disk / "out")
    writer = BundleWriter(small_disk / "out", force=True)
    with pytest.raises(ExportError, match="is full"), writer as folder:
        (folder / "model.xml").write_bytes(bytes(1_000_000))
        writer.commit(make_manifest("second"))
    assert verify(small_disk / "out").name == "toy"
    assert names(small_disk) == {"out"}


# --- kills -----------------------------------------------------------------------------------------


def test_kill_while_writing(bundle: Path) -> None:
    before = snapshot(bundle)
    script = textwrap.dedent(
        f"""
        import time
        from mednext_edge.bundle import BundleWriter
        with BundleWriter({str(bundle)!r}, force=True) as folder:
            (folder / "model.xml").write_bytes(b"half")
            print("ready", flush=True)
            time.sleep(60)
        """
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        # While the writer lives, its folder is not taken for a leftover.
        write(bundle.parent / "other")
        swap.recover(bundle)
        assert len(names(bundle.parent)) == 3
        process.kill()
    assert snapshot(bundle) == before
    verify(bundle)
    write(bundle, force=True, name="second")
    assert names(bundle.parent) == {bundle.name, "other"}


@needs_fork
def test_kill_between_the_two_renames(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an atomic exchange the name may be gone after a kill; the next use puts the old bundle back."""
    before = snapshot(bundle)
    rename = Path.rename

    def first_only(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        die()
        return moved

    def work() -> None:
        monkeypatch.setattr(swap, "exchange", lambda *_: False)
        monkeypatch.setattr(Path, "rename", first_only)
        write(bundle, force=True, name="second")

    os.waitpid(fork(work), 0)
    assert not bundle.exists()
    with pytest.raises(UsageError, match="--force"):
        write(bundle)
    assert snapshot(bundle) == before
    assert names(bundle.parent) == {bundle.name}


@needs_fork
def test_kill_after_the_exchange(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        monkeypatch.setattr(shutil, "rmtree", die)
        write(bundle, force=True, name="second")

    os.waitpid(fork(work), 0)
    assert verify(bundle).name == "second"
    write(bundle, force=True)
    assert names(bundle.parent) == {bundle.name}


@needs_fork
@pytest.mark.skipif(sys.platform != "linux", reason="the atomic exchange is Linux's")
def test_update_killed_at_any_instant(bundle: Path) -> None:
    chance = random.Random(0)

    def work() -> None:
        for number in range(10_000):
            content = f"report {number}".encode()
            update_bundle(bundle, {"report.md": content, f"{number % 7}.png": content}, Gate(drop=float(number)))

    for _ in range(15):
        pid = fork(work)
        time.sleep(chance.uniform(0.005, 0.06))
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        manifest = verify(bundle)
        if manifest.gate.drop is not None:
            assert (bundle / "report.md").read_bytes() == f"report {manifest.gate.drop:.0f}".encode()
    assert manifest.gate.drop is not None
    swap.recover(bundle)
    assert names(bundle.parent) == {bundle.name}


@needs_fork
def test_killed_process_that_nobody_waited_for_is_dead(bundle: Path) -> None:
    def work() -> None:
        BundleWriter(bundle, force=True).__enter__()
        die()

    pid = fork(work)
    while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.001)
    assert len(names(bundle.parent)) == 2
    write(bundle, force=True)
    assert names(bundle.parent) == {bundle.name}
    os.waitpid(pid, 0)
