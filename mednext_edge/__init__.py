"""From a MedNeXt checkpoint to a verified INT8 engine: the verbs of the package, each imported when first used.

import mednext_edge as mx

model = mx.load("demo:brain-tissue")
deploy = mx.fuse(model)
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mednext_edge.checkpoints import load
    from mednext_edge.evaluation.validate import validate
    from mednext_edge.export.export import export
    from mednext_edge.fusion.fuse import fuse
    from mednext_edge.runtime.engines import open
    from mednext_edge.runtime.predict import predict

__all__ = ["__version__", "export", "fuse", "load", "open", "predict", "validate"]

__version__ = version("mednext-edge")

_HOMES = {
    "fuse": "mednext_edge.fusion.fuse",
    "load": "mednext_edge.checkpoints",
    "open": "mednext_edge.runtime.engines",
    "predict": "mednext_edge.runtime.predict",
    "validate": "mednext_edge.evaluation.validate",
}


def __getattr__(name: str) -> Any:
    # `export` is a verb and a sub-package. The import system puts the sub-package here as soon as anything
    # imports it, so it is always the sub-package, which can be called (PEP 562 is not asked for names that exist).
    if name == "export":
        return importlib.import_module("mednext_edge.export")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module `mednext_edge` has no attribute `{name}`")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
