"""The models that come with the package: `demo:NAME`."""

from __future__ import annotations

from pathlib import Path

from mednext_edge.checkpoints.candidate import MODEL_JSON
from mednext_edge.registry import unknown_name

PREFIX = "demo:"
FOLDER = Path(__file__).resolve().parent.parent / "demo"


def resolve(path: str | Path) -> Path:
    """The folder of `demo:NAME`; any other path as it is.

    Raises:
        UnknownNameError: no such model is shipped.
    """
    if not str(path).startswith(PREFIX):
        return Path(path)
    name = str(path).removeprefix(PREFIX)
    shipped = [file.parent.name for file in FOLDER.glob(f"*/{MODEL_JSON}")]
    if name not in shipped:
        raise unknown_name("demo model", name, shipped)
    return FOLDER / name
