"""`mednext-edge serve`: wrong usage, before anything listens."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .conftest import Cli


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--send-to", "PACS"], 2, "no AE title"),
        (["--send-to", "PACS@host"], 2, "no host and port"),
        (["--send-to", "A_TITLE_THAT_IS_TOO_LONG@host:104"], 2, "no AE title"),
        (["--send-to", "PACS@host:port"], 2, "no address"),
        (["--send-to", "htp://host/studies"], 2, "Did you mean `http`"),
        (["--send-to", "https://user:word@host/studies"], 2, "--stow-auth"),
        (["--send-to", "file:/nowhere"], 2, "no such folder: /nowhere"),
        (["--send-to", "P@h:1", "--ae-title", "A\\B"], 2, "no AE title"),
        (["--send-to", "P@h:1", "--host", "0.0.0.0"], 2, "--allow '*'"),
        (["--send-to", "P@h:1", "--tls-cert", "c.pem"], 2, "belong together"),
        (["--send-to", "P@h:1", "--ae-title", "A\\B"], 2, "--ae-title: `A\\B` is"),
        (["--send-to", "P@h:1", "--allow", "A\\B"], 2, "--allow: `A\\B` is"),
        (["--send-to", "P@h:1", "--quiet", "0"], 2, "'--quiet'"),
        (["--send-to", "P@h:1", "--keep", "-1"], 2, "'--keep'"),
        (["--send-to", "P@h:1", "--max-spool-gb", "0"], 2, "'--max-spool-gb'"),
        (["--send-to", "P@h:1", "--min-free-gb", "-1"], 2, "'--min-free-gb'"),
        (["--send-to", "P@h:1", "--http-port", "65536"], 2, "'--http-port'"),
        (["--send-to", "P@h:1", "--http-port", "-2"], 2, "'--http-port'"),
        (["--send-to", "P@h:1", "--stow-auth", "/nowhere"], 2, "--stow-auth: /nowhere cannot be read"),
        (["--send-to", "P@h:1", "--stow-auth", "/dev/null"], 2, "/dev/null holds no line"),
        ([], 2, "--send-to"),
    ],
)
def test_wrong_usage(edge: Cli, bundle: Path, tmp_path: Path, args: list[str], code: int, words: str) -> None:
    done = edge("serve", "dicom", bundle, *args, "--spool", tmp_path / "spool")
    assert (done.code, done.out) == (code, "")
    assert words in " ".join(done.err.split())
    assert not (tmp_path / "spool").exists()


def test_no_bundle_and_a_damaged_one(edge: Cli, bundle: Path, tmp_path: Path) -> None:
    import shutil

    args = ["--send-to", "P@h:1", "--spool", tmp_path / "spool"]
    assert edge("serve", "dicom", tmp_path, *args).code == 2
    shutil.copytree(bundle, tmp_path / "copy")
    (tmp_path / "copy" / "model.bin").write_bytes(b"!")
    assert edge("serve", "dicom", tmp_path / "copy", *args).code == 6


@pytest.mark.parametrize("package", ["pynetdicom", "highdicom"])
def test_a_package_that_is_missing_is_missed_at_the_start(
    edge: Cli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """Not with the first series, which would then count as failed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    done = edge("serve", "dicom", bundle, "--send-to", "P@h:1", "--spool", tmp_path / "spool", "--port", 0)
    assert done.code == 5
    assert f"`{package}` is not installed" in done.err
    assert "pip install mednext-edge[dicom]" in " ".join(done.err.split())
