"""Every error this package raises on purpose.

    MednextEdgeError            exit 1
    |-- UsageError              exit 2   the request itself is wrong
    |   `-- UnknownNameError             a name that no registry holds; carries the closest match
    |-- CheckpointError         exit 1   a weights file that cannot be read or does not fit
    |   `-- UnsafePickleError            a pickle that asks for more than the allow-list
    |-- DataError               exit 1   images, labels or datasets that cannot be used
    |   `-- GeometryError                  slices that do not make one regular volume; says what kind of fault
    |-- ExportError             exit 1   a graph that cannot be written, converted or run
    |-- AccuracyGateError       exit 3   the exported model loses more than `--max-drop`
    |-- PerformanceGateError    exit 4   slower than the gate allows
    |-- NoisyMachineError       exit 1   timings that vary too much for a verdict
    |-- TargetUnavailableError  exit 5   a target, device or package that is not here
    `-- IntegrityError          exit 6   a digest that does not match

A message says what was found, what was expected and what to do next.
"""

from __future__ import annotations


class MednextEdgeError(Exception):
    """Base of all deliberate errors; `exit_code` is what the commands return."""

    exit_code = 1


class UsageError(MednextEdgeError):
    """The request contradicts itself or names an impossible value."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not registered."""


class CheckpointError(MednextEdgeError):
    """A weights file that cannot be read, or that does not fit the network it is for."""


class UnsafePickleError(CheckpointError):
    """A pickle that asks for a global outside the closed allow-list."""


class DataError(MednextEdgeError):
    """Images, labels or datasets that cannot be used as they are."""


class GeometryError(DataError):
    """Slices that do not make one regular volume.

    Attributes:
        kind: the fault in one word, such as `gap` or `tilt`, for counting and for logs.
    """

    def __init__(self, message: str, kind: str = "geometry") -> None:
        super().__init__(message)
        self.kind = kind


class ExportError(MednextEdgeError):
    """A graph that cannot be exported, converted or executed."""


class AccuracyGateError(MednextEdgeError):
    """The exported model loses more accuracy than the gate allows."""

    exit_code = 3


class PerformanceGateError(MednextEdgeError):
    """The exported model is slower than the gate allows."""

    exit_code = 4


class NoisyMachineError(MednextEdgeError):
    """Timings of one and the same thing differ so much that nothing can be said of two."""


class TargetUnavailableError(MednextEdgeError):
    """A target, a device or an optional package that this machine does not have."""

    exit_code = 5


class IntegrityError(MednextEdgeError):
    """A file whose digest differs from the one its manifest states."""

    exit_code = 6
