"""`mednext-edge package`."""

from __future__ import annotations

from pathlib import Path

from mednext_edge.cli.package import FORMATS
from mednext_edge.serving.package import openrecon, ovms, triton
from mednext_edge.serving.package.formats import PACKAGES

from .conftest import Cli


def test_the_command_knows_every_format() -> None:
    assert {module.__name__.rpartition(".")[2] for module in (openrecon, ovms, triton)} == set(FORMATS) == set(PACKAGES)


def test_package_and_its_place(edge: Cli, bundle: Path, tmp_path: Path) -> None:
    done = edge("package", bundle, "--format", "ovms", "--out", tmp_path / "served", "--json")
    assert done.code == 0
    assert done.json["package"] == str(tmp_path / "served")
    assert (tmp_path / "served" / "config.json").is_file()
    assert edge("package", bundle, "--format", "ovms", "--out", tmp_path / "served").code == 2
    assert edge("package", bundle, "--format", "tritn").code == 2


def test_a_vendors_schema(edge: Cli, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"required": ["licence"]}')
    args = ("--format", "openrecon", "--out", tmp_path / "out", "--schema", tmp_path / "schema.json")
    done = edge("package", bundle, *args)
    assert done.code == 1
    assert "'licence' is a required property" in " ".join(done.err.split())
    (tmp_path / "schema.json").write_text("{}")
    assert edge("package", bundle, *args, "--json").json["schema"] == str(tmp_path / "schema.json")
