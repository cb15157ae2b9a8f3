"""The packages that build and run plans: TensorRT on the device, TensorRT for RTX on any machine.

Both have one Python API under different names, so everything else takes the imported module and asks it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

from mednext_edge.errors import TargetUnavailableError
from mednext_edge.registry import Registry

OLDEST_TENSORRT = 10
"""First major version with the strongly typed networks that this project writes."""


@dataclass(frozen=True)
class Provider:
    """A package that builds and runs plans.

    Attributes:
        name: as it stands in manifests.
        title: as people write it.
        modules: import names, the first that is found counts.
        package: what to give to pip.
        cross: builds for a device that is not here.
    """

    name: str
    title: str
    modules: tuple[str, ...]
    package: str
    cross: bool

    def load(self) -> ModuleType:
        """The provider's module.

        Raises:
            TargetUnavailableError: it is not installed, cannot be loaded, or is too old.
        """
        reasons = []
        for name in self.modules:
            try:
                module = importlib.import_module(name)
            except (ImportError, OSError) as error:  # OSError: a library that it links to is missing
                reasons.append(f"{name}: {error}")
                continue
            if not self.cross and major(module) < OLDEST_TENSORRT:
                raise TargetUnavailableError(
                    f"found {self.title} {module.__version__}; strongly typed networks need {OLDEST_TENSORRT} or newer"
                )
            return module
        raise TargetUnavailableError(
            f"{self.title} is not usable here ({'; '.join(reasons)}); install it with `pip install {self.package}`"
        )

    @property
    def version(self) -> str:
        """Raises TargetUnavailableError as `load`."""
        return str(self.load().__version__)


def major(module: ModuleType) -> int:
    """Major version of a provider's module."""
    return int(module.__version__.split(".")[0])


PROVIDERS: Registry[Provider] = Registry("provider")

PROVIDERS.add(
    "tensorrt",
    Provider("tensorrt", "TensorRT", ("tensorrt",), "tensorrt", cross=False),
)
PROVIDERS.add(
    "tensorrt-rtx",
    Provider(
        "tensorrt-rtx",
        "TensorRT for RTX",
        ("tensorrt_rtx", "tensorrt_rtx_bindings"),
        "tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs",
        cross=True,
    ),
)
