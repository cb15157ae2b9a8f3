"""Reading a bundle: what it says, and whether its files are what it says.

An engine is executable code, so `verify` comes before any engine is opened. The digests guard
against damage and mix-ups; they are not a signature and do not prove who made the bundle.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from mednext_edge.bundle.manifest import MANIFEST, SCHEMA, SEAL, Manifest, digest, seal
from mednext_edge.errors import IntegrityError, UsageError

ENGINE_SUFFIXES = frozenset(
    {".xml", ".bin", ".onnx", ".data", ".plan", ".engine", ".trt", ".blob", ".mlmodel"}
) | frozenset({".pt", ".pt2", ".pth", ".pkl", ".safetensors", ".so", ".dll", ".dylib"})
"""Kinds of files that a runtime could pick up and execute or take for weights."""


def read_manifest(path: Path) -> Manifest:
    """The manifest of a bundle, with its listed files present; cheap, reads no engine.

    Raises:
        UsageError: the path is no bundle.
        IntegrityError: not JSON, an unknown schema, a field or a path that is not allowed, a file
            that is missing or lies outside the bundle.
    """
    folder = Path(path)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise UsageError(f"found {found} at {folder}; expected a bundle, the folder that `mednext-export` writes")
    file = folder / MANIFEST
    if not file.is_file():
        raise UsageError(
            f"{folder} is not a bundle: it holds no {MANIFEST}. Give the folder that `mednext-export` wrote"
        )
    try:
        stated = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{file} is not valid JSON ({error}); export again or copy the bundle again") from error
    schema = stated.get("schema") if isinstance(stated, dict) else None
    if type(schema) is not int or schema != SCHEMA:
        raise IntegrityError(
            f"{file} has schema {schema!r}; this version reads schema {SCHEMA}. "
            "Install the mednext-edge that wrote it, or export again"
        )
    try:
        manifest = Manifest.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise IntegrityError(f"{file} is not a valid manifest: {where}: {first['msg']}; export again") from error
    root = folder.resolve()
    for entry in manifest.files:
        listed = folder / entry.path
        if not listed.resolve().is_relative_to(root):
            raise IntegrityError(f"{entry.path} of {folder} is a link to a place outside the bundle; refused")
        if not listed.is_file():
            raise IntegrityError(f"{entry.path} is missing from {folder}; copy the bundle again")
    return manifest


def verify(path: Path) -> Manifest:
    """The manifest of a bundle whose every byte has been checked against its digest.

    Raises:
        UsageError: the path is no bundle.
        IntegrityError: as `read_manifest`; or a file whose size or digest differs; or an engine-like
            file that the manifest does not list.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    stated = (folder / SEAL).read_bytes() if (folder / SEAL).is_file() else b""
    actual = seal((folder / MANIFEST).read_bytes())
    if stated != actual:
        raise IntegrityError(
            f"{MANIFEST} of {folder} has SHA-256 {actual[:64].decode()}; {SEAL} states "
            f"{stated[:64].decode('ascii', 'replace') or 'nothing'}. Copy the bundle again or export again"
        )
    for entry in manifest.files:
        file = folder / entry.path
        size = file.stat().st_size
        found = digest(file)
        if size != entry.size or found != entry.sha256:
            raise IntegrityError(
                f"{entry.path} of {folder} has SHA-256 {found} and {size} bytes; the manifest states "
                f"{entry.sha256} and {entry.size} bytes. Copy the bundle again or export again"
            )
    listed = {entry.path for entry in manifest.files}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.suffix.lower() in ENGINE_SUFFIXES and name not in listed and not file.is_dir():
            raise IntegrityError(f"{name} in {folder} is not listed in its manifest; remove it or export again")
    return manifest
