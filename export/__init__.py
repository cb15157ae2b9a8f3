"""From a network in deploy form to a bundle: the table of targets, one file per target, and the verb itself.

`mednext_edge.export(...)` is `mednext_edge.export.export.export(...)`: the sub-package and the verb share a name, so
the sub-package can be called. (Python data model, "Customizing module attribute access": a module's class may be set.)
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from mednext_edge.export.export import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
