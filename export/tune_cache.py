"""What was measured before on this machine, by the digest of everything that it depends on."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mednext_edge.cache import Keyed, cache_folder
from mednext_edge.environment import environment, machine_digest

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)


Found = TypeVar("Found", bound=Keyed)


def key_of(package: str, **parts: Any) -> str:
    """SHA-256 in hex of machine, versions and everything else.

    Args:
        package: that executes the engine.
        parts: what else the timings depend on.
    """
    here = environment()
    engine = [package, here.packages.get(package), here.packages["mednext-edge"]]
    what = {"machine": machine_digest(here), "engine": engine, **parts}
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def graph_digest(graph: onnx.ModelProto) -> str:
    """SHA-256 in hex of a graph without its weights: what it computes, of which sizes and types."""
    digest = hashlib.sha256()
    for part in (*graph.graph.node, *graph.graph.input, *graph.graph.output):
        digest.update(part.SerializeToString(deterministic=True))
    for weight in graph.graph.initializer:
        digest.update(f"{weight.name} {list(weight.dims)} {weight.data_type}\n".encode())
    return digest.hexdigest()


class TuningCache:
    """A folder with one file for each result.

    Args:
        folder: None is the user's.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder() / "tuning"

    def load(self, kind: type[Found], key: str) -> Found | None:
        """The result of a digest; None where there is none, with a word in the log where it cannot be read."""
        file = self._file(key)
        try:
            found = kind.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("the earlier tuning %s cannot be read (%s); it is measured anew", file, error)
            return None
        return found if found.key == key else None

    def save(self, result: Keyed) -> None:
        """A cache only saves time: where it cannot be written, the log says so."""
        file = self._file(result.key)
        temporary = file.with_name(f".{file.name}.part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
            temporary.replace(file)
        except OSError as error:
            log.warning("the tuning cannot be kept in %s (%s)", file, error)

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.json"
