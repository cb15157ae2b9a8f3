"""Revisions of a small repository, whose package brings its own build backend: nothing is downloaded."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mednext_edge.errors import MednextEdgeError, UsageError
from mednext_edge.evaluation.revision import built, find_commit

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

BACKEND = '''
"""Just enough of PEP 517: a wheel of one package."""
import pathlib, zipfile

NAME, VERSION = "mednext_edge", "0"


def build_wheel(folder, config_settings=None, metadata_directory=None):
    info = f"{NAME}-{VERSION}.dist-info"
    with zipfile.ZipFile(pathlib.Path(folder) / f"{NAME}-{VERSION}-py3-none-any.whl", "w") as wheel:
        for file in sorted(pathlib.Path(NAME).rglob("*.py")):
            wheel.write(file)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\\nName: {NAME}\\nVersion: {VERSION}\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return f"{NAME}-{VERSION}-py3-none-any.whl"
'''
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.invalid", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits: `mednext_edge.SPEED` is 1, then 2; and one without the package."""
    folder = tmp_path / "clone"
    (folder / "mednext_edge").mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "backend.py").write_text(BACKEND)
    for speed in (1, 2):
        (folder / "mednext_edge" / "__init__.py").write_text(f"SPEED = {speed}\n")
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", f"speed {speed}")
    git(folder, "switch", "-q", "-c", "broken")
    (folder / "backend.py").write_text("def build_wheel(*a, **k):\n    raise SystemExit('no wheel today')\n")
    git(folder, "commit", "-q", "-a", "-m", "broken")
    git(folder, "switch", "-q", "--orphan", "empty")
    git(folder, "commit", "-q", "--allow-empty", "-m", "empty")
    git(folder, "switch", "-q", "main")
    return folder


def test_the_package_of_a_revision_is_built_and_removed(repository: Path) -> None:
    (repository / "mednext_edge" / "__init__.py").write_text("SPEED = 3  # not committed\n")
    with built("main~1", repository / "mednext_edge") as site:
        assert (site / "mednext_edge" / "__init__.py").read_text() == "SPEED = 1\n"
        assert len(git(repository, "worktree", "list").splitlines()) == 2
    assert not site.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert "not committed" in (repository / "mednext_edge" / "__init__.py").read_text()


def test_what_cannot_be_built(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(MednextEdgeError, match="broken cannot be built"), built("broken", repository):
        pass
    with pytest.raises(UsageError, match="holds no mednext_edge"), built("empty", repository):
        pass
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for revision, where in (("nothing-like-this", repository), ("--help", repository), ("main", elsewhere)):
        with pytest.raises(UsageError, match="neither a bundle, nor a checkpoint, nor a revision"):
            find_commit(revision, where)
