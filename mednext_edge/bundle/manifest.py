"""What a bundle says of itself: the schema of `manifest.json`.

The manifest lists every other file with its digest. Its own digest stands beside it in
`manifest.sha256`, in the format of `sha256sum`, so that no byte of a bundle is without one.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from mednext_edge.models.loaded import Source
from mednext_edge.task import Frozen, Inference, ModelSpec, Preprocessing, Region, Task

SCHEMA: Final = 1
MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
"""The digest of the manifest itself; `sha256sum -c manifest.sha256` reads it."""


class InputSpec(Frozen):
    """The engine's input: None in `shape` is a size that may vary; `patch` is what it was made for."""

    shape: tuple[int | None, ...]
    dtype: str = "float32"
    layout: str = "NCDHW"
    patch: tuple[int, ...]


class OutputSpec(Frozen):
    """The engine's output: logits, before softmax, background first; with regions those of each, before its sigmoid."""

    shape: tuple[int | None, ...]
    dtype: str = "float32"
    layout: str = "NCDHW"


class Plan(Frozen):
    """One of several engine files: the compute capability it was built for, such as `8.6`, and the file."""

    arch: str
    file: str


class Engine(Frozen):
    """The file that runs, who runs it, and on what.

    Attributes:
        file: the engine; with `plans` the first of them.
        provider: package that runs it.
        provider_version: the version that wrote it; of a deferred engine the one that checked what it is built from.
        arch: device family it is bound to, None if to none.
        status: `deferred` is an engine that can only be built on the device: `file` is then what it is built from.
        plans: the same engine for several device families; empty when there is one file alone.
    """

    file: str
    provider: str
    provider_version: str
    arch: str | None = None
    status: Literal["built", "deferred"] = "built"
    plans: tuple[Plan, ...] = ()


class Gate(Frozen):
    """The outcome of the accuracy gate: drops are fractions of 1, baseline minus exported."""

    status: Literal["passed", "failed", "not_run"] = "not_run"
    metric: str | None = None
    max_drop: float | None = None
    drop: float | None = None


class FileEntry(Frozen):
    """One file of the bundle: relative POSIX path, SHA-256 in lower-case hex, bytes."""

    path: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        return inside(path)


class Manifest(Frozen):
    """Everything a device needs to know of a bundle before it opens the engine."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    name: str
    model: ModelSpec
    source: Source
    input: InputSpec
    output: OutputSpec
    preprocessing: Preprocessing
    inference: Inference
    labels: dict[str, int]
    regions: tuple[Region, ...] = ()
    target: str
    precision: str
    engine: Engine
    rewrites: tuple[str, ...] = ()
    gate: Gate = Gate()
    files: tuple[FileEntry, ...] = ()
    tool_version: str = Field(default_factory=lambda: version("mednext-edge"))
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def task(self) -> Task:
        """The task of the checkpoint, unchanged."""
        return Task(
            name=self.name,
            model=self.model,
            preprocessing=self.preprocessing,
            inference=self.inference,
            labels=self.labels,
            regions=self.regions,
        )

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        _ = self.task  # runs the checks of Task
        names = [entry.path for entry in self.files]
        if len(set(names)) != len(names):
            raise ValueError("a file is listed twice")
        if {MANIFEST, SEAL} & set(names):
            raise ValueError(f"{MANIFEST} and {SEAL} cannot list themselves")
        for file in (self.engine.file, *(plan.file for plan in self.engine.plans)):
            if names and file not in names:
                raise ValueError(f"the engine {file} is not among the listed files")
        return self

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


def inside(path: str) -> str:
    """The path itself when it can only mean a file below the bundle, on every system.

    Raises:
        ValueError: empty, absolute, not normalised, with `..`, a backslash, a drive or a control character.
    """
    pure = PurePosixPath(path)
    if (
        not path
        or str(pure) != path
        or pure.is_absolute()
        or ".." in pure.parts
        or path == "."
        or any(c in '\\:<>|?*"' or ord(c) < 32 for c in path)
    ):
        raise ValueError(f"`{path}` is not a plain path inside the bundle")
    return path


def digest(path: Path) -> str:
    """SHA-256 of a file, lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(manifest: bytes) -> bytes:
    """Content of `manifest.sha256` for the bytes of a manifest."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode("ascii")
