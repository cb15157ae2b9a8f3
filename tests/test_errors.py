"""The exception tree: exit codes, and the drawing in its docstring."""

from __future__ import annotations

import inspect
import re

from mednext_edge import errors
from mednext_edge.errors import MednextEdgeError

CLASSES: dict[str, type[MednextEdgeError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, MednextEdgeError) and kind.__module__ == errors.__name__
}


def test_exit_codes_are_those_of_the_commands() -> None:
    codes = {name: kind.exit_code for name, kind in CLASSES.items()}
    assert codes == {
        "MednextEdgeError": 1,
        "UsageError": 2,
        "UnknownNameError": 2,
        "CheckpointError": 1,
        "UnsafePickleError": 1,
        "DataError": 1,
        "GeometryError": 1,
        "ExportError": 1,
        "AccuracyGateError": 3,
        "PerformanceGateError": 4,
        "NoisyMachineError": 1,
        "TargetUnavailableError": 5,
        "IntegrityError": 6,
    }


def test_all_derive_from_one() -> None:
    defined = {name for name, kind in vars(errors).items() if inspect.isclass(kind)}
    assert defined == set(CLASSES)


def test_drawing_names_every_class_once_below_its_base() -> None:
    drawn = re.findall(r"^([ |`-]*)(\w+Error)\b", errors.__doc__ or "", re.MULTILINE)
    assert sorted(name for _, name in drawn) == sorted(CLASSES)
    stack: list[tuple[int, str]] = []
    for lead, name in drawn:
        while stack and stack[-1][0] >= len(lead):
            stack.pop()
        assert CLASSES[name].__base__ is (CLASSES[stack[-1][1]] if stack else Exception)
        stack.append((len(lead), name))
