"""The table of package formats, and how a package is written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from mednext_edge.bundle import Manifest, verify
from mednext_edge.bundle.manifest import MANIFEST
from mednext_edge.bundle.swap import recover, replace, sibling, sync
from mednext_edge.errors import TargetUnavailableError, UsageError
from mednext_edge.registry import Registry
from mednext_edge.serving.package.schema import check_schema

MARK = "mednext-edge-package.json"
"""Says that a folder was written by this package, so that it may be replaced."""


@dataclass(frozen=True)
class Source:
    """A verified bundle.

    Attributes:
        folder: of the bundle.
        manifest: its own.
        digest: SHA-256 of the manifest, hex.
    """

    folder: Path
    manifest: Manifest
    digest: str

    @property
    def name(self) -> str:
        """The model's name in letters, digits, `-` and `_`, which every server takes."""
        return "".join(c if (c.isalnum() and c.isascii()) or c in "-_" else "_" for c in self.manifest.name)


@dataclass(frozen=True)
class PackageFormat:
    """One kind of package.

    Attributes:
        title: what it is for, in words.
        targets: export targets whose bundles it can hold.
        write: (bundle, empty folder) -> fills the folder, README.md included.
        described: the JSON file in it that the server's maker has a schema for; None where there is none.
    """

    title: str
    targets: tuple[str, ...]
    write: Callable[[Source, Path], None]
    described: str | None = None


PACKAGES: Registry[PackageFormat] = Registry("package format")


def package(bundle: Path, form: str, out: Path, force: bool = False, schema: Path | None = None) -> Path:
    """Write a bundle as a package.

    Args:
        bundle: its folder; the digests are checked.
        form: name of the format.
        out: folder of the package.
        force: replace a package that is there. Anything else that is not empty is never replaced.
        schema: the vendor's JSON schema, to check the format's own JSON file against.

    Raises:
        UnknownNameError: no such format.
        UsageError: the format does not hold bundles of this target, has nothing that a schema describes, `out` is
            taken, or `schema` is none.
        ExportError: what was written breaks the schema; nothing is left of it.
        IntegrityError: the bundle is damaged.
        TargetUnavailableError: the bundle's engine is still to be built, or jsonschema is not installed.
    """
    kind = PACKAGES[form]
    if schema is not None and kind.described is None:
        able = ", ".join(sorted(name for name, other in PACKAGES.items() if other.described is not None))
        raise UsageError(f"a package for {kind.title} has no JSON file that a schema describes; {able} have one")
    manifest = verify(bundle)
    if manifest.target not in kind.targets:
        raise UsageError(
            f"{bundle} is for `{manifest.target}`; {kind.title} takes {', '.join(kind.targets)}. "
            f"Export with `--target {kind.targets[0]}`"
        )
    if manifest.model.kind != "segmentation":
        raise UsageError(f"{bundle} answers with a {manifest.model.kind}; packages are made of segmentation models")
    if manifest.engine.status == "deferred":
        raise TargetUnavailableError(f"{bundle}: the engine is not built yet; run `mednext-edge build {bundle}` first")
    digest = hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()
    out = out.resolve()
    _refuse_taken(out, force)
    out.parent.mkdir(parents=True, exist_ok=True)
    recover(out)
    temporary = sibling(out, "tmp")
    temporary.mkdir()
    try:
        kind.write(Source(bundle, manifest, digest), temporary)
        mark = {"format": form, "bundle": digest, "tool_version": version("mednext-edge")}
        if schema is not None and kind.described is not None:
            mark["schema"] = check_schema(temporary / kind.described, schema)
        (temporary / MARK).write_text(json.dumps(mark, indent=2) + "\n")
        for path in temporary.rglob("*"):
            sync(path)
        replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def copy_bundle(source: Source, to: Path) -> None:
    """The files that the manifest lists, the manifest and its seal."""
    shutil.copytree(source.folder, to)
    verify(to)


def _refuse_taken(out: Path, force: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MARK).is_file():
        raise UsageError(f"{out} holds other things and is never replaced; choose another --out")
    if not force:
        raise UsageError(f"{out} already holds a package; add `--force` to replace it, or choose another --out")
