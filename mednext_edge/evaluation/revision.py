"""The package as it is at a revision of a git repository, built beside the one that is installed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from mednext_edge.errors import MednextEdgeError, TargetUnavailableError, UsageError

PACKAGE = "mednext_edge"


@contextlib.contextmanager
def built(revision: str, repository: Path) -> Iterator[Path]:
    """A folder that holds the package of a revision, its native libraries built, until the end of the block.

    The revision is checked out into a worktree of its own; the repository's files and branches stay as they are.
    Dependencies are those that are installed: a revision that needs others is not comparable.

    Args:
        revision: anything that git takes for a commit.
        repository: a folder inside the repository.

    Raises:
        UsageError: no such revision, no repository, or none of this package.
        TargetUnavailableError: git is not installed.
        MednextEdgeError: it cannot be built.
    """
    commit = find_commit(revision, repository)
    with tempfile.TemporaryDirectory(prefix="mednext-edge-") as temporary:
        tree, site = Path(temporary) / "tree", Path(temporary) / "site"
        _git(repository, "worktree", "add", "--detach", "--force", str(tree), commit)
        try:
            if not (tree / PACKAGE).is_dir():
                raise UsageError(f"the revision {revision} of {repository} holds no {PACKAGE}; run in a clone of it")
            _build(tree, site, revision)
            yield site
        finally:
            _git(repository, "worktree", "remove", "--force", str(tree))


def find_commit(revision: str, repository: Path) -> str:
    """The full name of a commit.

    Raises:
        UsageError: no such revision, or no repository.
        TargetUnavailableError: git is not installed.
    """
    try:
        return _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except MednextEdgeError as error:
        if isinstance(error, TargetUnavailableError):
            raise
        raise UsageError(
            f"`{revision}` is neither a bundle, nor a checkpoint, nor a revision of the git repository in {repository}"
        ) from error


def _build(tree: Path, site: Path, revision: str) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    done = _run([*pip, "--target", str(site), str(tree)])
    if done.returncode:
        raise MednextEdgeError(f"the revision {revision} cannot be built: {_last(done.stderr)}")


def _git(repository: Path, *arguments: str) -> str:
    try:
        done = _run(["git", "-C", str(repository), *arguments])
    except FileNotFoundError as error:
        raise TargetUnavailableError("git is not installed; compare two bundles instead") from error
    if done.returncode:
        raise MednextEdgeError(f"git {arguments[0]} failed: {_last(done.stderr)}")
    return done.stdout.strip()


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def _last(words: str) -> str:
    return " ".join(words.strip().splitlines()[-3:]) or "without a word"
