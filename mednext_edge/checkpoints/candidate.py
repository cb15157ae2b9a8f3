"""A path that may be a checkpoint: which file holds the weights, and what is in it, each read once."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mednext_edge.checkpoints.state import Weights, network_weights
from mednext_edge.checkpoints.unpickle import LEGACY_MAGIC, ZIP_MAGIC, load_pickle, load_torch
from mednext_edge.errors import CheckpointError

MODEL_JSON = "model.json"
PREFERRED = (
    "checkpoint_final.pth",
    "checkpoint_best.pth",
    "checkpoint_latest.pth",
    "model_final_checkpoint.model",
    "model_best.model",
    "model_latest.model",
)
"""nnU-Net's own names for the weights of a fold, best choice first."""
SUFFIXES = (".safetensors", ".model", ".pth", ".pt", ".ckpt", ".bin")
MAX_HEADER = 100 * 2**20
"""Longest header of a safetensors file; the format's own limit."""


@dataclass(frozen=True)
class Candidate:
    """A weights file, with what was chosen to get to it.

    Attributes:
        file: the weights.
        notes: which fold and which file were chosen, when a folder was named.
    """

    file: Path
    notes: tuple[str, ...] = ()

    @cached_property
    def content(self) -> Any:
        """Everything in the file, as plain data and tensors.

        Raises:
            CheckpointError: empty, truncated, or not a weights file.
        """
        if is_safetensors(self.file):
            return load_safetensors(self.file)
        with self.file.open("rb") as file:
            head = file.read(64)
        if not head:
            raise CheckpointError(f"{self.file} is empty; expected a checkpoint")
        if head.startswith((ZIP_MAGIC, LEGACY_MAGIC)):
            return load_torch(self.file)
        if head[0] == 0x80:
            # A bare pickle: whatever it asks for is named; if it is harmless, it still holds no tensors.
            found = type(load_pickle(self.file)).__name__
            raise CheckpointError(f"{self.file} is a plain pickle of a {found}, without tensors; expected a checkpoint")
        raise CheckpointError(
            f"{self.file} is not a checkpoint: it begins with {head[:16]!r}; expected a file of torch.save "
            "(.model, .pth, .pt, .ckpt, .bin) or a .safetensors file"
        )

    @cached_property
    def weights(self) -> Weights:
        """The tensors as those of a network that is known.

        Raises:
            CheckpointError: no such network, or no usable weights.
        """
        return network_weights(self.content)

    @cached_property
    def sha256(self) -> str:
        """Digest of the weights file, hexadecimal."""
        with self.file.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a JSON header, then the header."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER


def load_safetensors(path: Path) -> dict[str, Any]:
    """Tensors of a safetensors file.

    Raises:
        CheckpointError: truncated or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}); it is truncated or damaged") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: unreadable, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


def locate(path: Path) -> Candidate:
    """The weights file that a path means: the file itself, or the one to take from a folder.

    A folder is ours (`model.json`), a fold, or a trainer's folder with folds in it. Fold 0 comes before
    the other folds and `all`; the final weights come before the best and the latest.

    Raises:
        CheckpointError: nothing there; the message lists what was found further down.
    """
    path = Path(path)
    if path.is_file():
        return Candidate(path)
    if not path.is_dir():
        raise CheckpointError(f"no such file or folder: {path}")
    if (path / MODEL_JSON).is_file():
        weights = read_json(path / MODEL_JSON).get("weights")
        name = weights.get("file") if isinstance(weights, dict) else None
        return Candidate(path / plain_name(name, path / MODEL_JSON))
    folds = [f for f in path.iterdir() if f.is_dir() and re.fullmatch(r"fold_(\d+|all)|all", f.name)]
    folds.sort(key=lambda f: (not f.name[5:].isdigit(), int(f.name[5:]) if f.name[5:].isdigit() else 0, f.name))
    for folder in (path, *folds):
        for name in PREFERRED:
            if (folder / name).is_file():
                where = folder.relative_to(path) / name
                others = f" out of {len(folds)} folds" if folder is not path and len(folds) > 1 else ""
                return Candidate(folder / name, (f"weights taken from {where.as_posix()}{others}",))
    files = sorted(f for f in path.iterdir() if f.is_file() and f.suffix in SUFFIXES)
    if len(files) == 1:
        return Candidate(files[0], (f"weights taken from {files[0].name}",))
    below = files or [f for depth in ("*/*", "*/*/*", "*/*/*/*") for f in path.glob(depth) if f.suffix in SUFFIXES]
    found = ", ".join(f.relative_to(path).as_posix() for f in sorted(below)[:6])
    raise CheckpointError(
        f"{path} is a folder without a checkpoint of its own; expected {MODEL_JSON}, an nnU-Net fold (fold_0, all) or "
        + (
            f"one weights file. Name one of those below: {found}"
            if found
            else "a weights file. Nothing was found in it"
        )
    )


def plain_name(name: Any, where: Path) -> str:
    """A file name that stays in its folder.

    Raises:
        CheckpointError: not a name, or one that leads elsewhere.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w][\w. +-]*", name):
        raise CheckpointError(
            f"{where} names {name!r} as its weights file; expected a plain file name in the same folder"
        )
    return name
