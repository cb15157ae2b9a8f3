"""Who may import whom, what importing the package may bring with it, and what the package offers."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mednext_edge

ROOT = Path(__file__).resolve().parents[1]

# From the bottom to the top; a part may import its own layer, without circles, and those below.
LAYERS = (
    {"errors", "registry", "task", "regions", "cache", "cpu", "environment", "optional"},
    {"models", "ops", "data", "checkpoints", "bundle", "demo", "nvidia"},
    {"runtime", "fusion"},
    {"training", "export", "quantize", "evaluation", "serving"},
    {"cli"},
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}

HEAVY = {
    "matplotlib",
    "monai",
    "nibabel",
    "nilearn",
    "nncf",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "highdicom",
    "ismrmrd",
    "pydicom",
    "pynetdicom",
    "ray",
    "scipy",
    "tensorrt",
    "tensorrt_rtx",
    "tensorrt_rtx_bindings",
    "torch",
}
# What no sub-package may bring in by being imported itself; its modules are imported when they are used.
ENGINES = {
    *("nncf", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"),
    *("highdicom", "ismrmrd", "pynetdicom", "ray"),  # not pydicom: monai imports it wherever it is installed
}


def sources() -> Iterator[tuple[str, Path]]:
    """(dotted name inside the package, file) of every module, as installed."""
    for prefix, folder in (("", "mednext_edge"), ("export", "export"), ("quantize", "quantize")):
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = [*prefix.split(), *file.relative_to(ROOT / folder).with_suffix("").parts]
            yield ".".join(parts), file


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """(dotted name below `mednext_edge`, line) of every import of the package, at any depth of the file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno}: imports are absolute"
            door = node.module == "mednext_edge"
            names = [f"mednext_edge.{alias.name}" for alias in node.names] if door else [node.module or ""]
        else:
            continue
        for name in names:
            if name == "mednext_edge" or name.startswith("mednext_edge."):
                yield name.removeprefix("mednext_edge").lstrip("."), node.lineno


def test_every_part_has_a_layer() -> None:
    parts = {name.split(".")[0] for name, _ in sources()} - {"__init__"}
    assert parts <= set(RANK)


@pytest.mark.parametrize(("name", "file"), [pytest.param(n, f, id=n) for n, f in sources() if n != "__init__"])
def test_imports_run_one_way(name: str, file: Path) -> None:
    importer = name.split(".")[0]
    for imported, line in imports(file):
        where = f"{file.relative_to(ROOT)}:{line}"
        part = imported.split(".")[0]
        # The package itself is the door for users; only the commands go through it.
        assert part or importer == "cli", f"{where}: import the part, not `mednext_edge` itself"
        assert not part or RANK[part] <= RANK[importer], f"{where}: `{importer}` must not import `{part}`"


def test_no_circles_between_the_parts() -> None:
    graph: dict[str, set[str]] = {}
    for name, file in sources():
        part = name.split(".")[0]
        if part != "__init__":
            graph.setdefault(part, set()).update({i.split(".")[0] for i, _ in imports(file)} - {part, ""})
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"the parts import each other in a circle: {' -> '.join(error.args[1])}")


def loaded(code: str) -> set[str]:
    """Top-level packages that are loaded after `code` in a fresh interpreter."""
    script = f"{code}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["mednext_edge", "mednext_edge.cli.main"])
def test_the_package_and_its_commands_are_light(module: str) -> None:
    assert not loaded(f"import {module}") & HEAVY


def test_sub_packages_bring_no_engine() -> None:
    packages = sorted({f"mednext_edge.{name.rpartition('.')[0]}" for name, _ in sources() if "." in name})
    assert "mednext_edge.runtime" in packages
    assert not loaded("\n".join(f"import {package}" for package in packages)) & ENGINES


def test_targets_are_listed_without_their_libraries() -> None:
    assert not loaded("from mednext_edge.export.export import TARGETS\nassert 'openvino' in TARGETS") & ENGINES


def test_all_is_what_the_package_offers() -> None:
    assert mednext_edge.__all__ == sorted(mednext_edge.__all__)
    assert set(mednext_edge.__all__) == {*mednext_edge._HOMES, "__version__", "export"}
    assert set(mednext_edge.__all__) <= set(dir(mednext_edge))
    for name in mednext_edge.__all__:
        assert name == "__version__" or callable(getattr(mednext_edge, name)), name


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute `exprot`"):
        _ = mednext_edge.exprot


@pytest.mark.parametrize(
    "order",
    [
        "import mednext_edge as mx",
        "import mednext_edge as mx; import mednext_edge.export.targets",
        "import mednext_edge.export.export; import mednext_edge as mx",
        "from mednext_edge.export import export as verb; import mednext_edge as mx",
        "import mednext_edge as mx; mx.export; import mednext_edge.export.export as verb",
        "from mednext_edge import export as verb; import mednext_edge as mx; assert verb is mx.export",
        "from mednext_edge import *; import mednext_edge as mx; assert export is mx.export",
    ],
)
def test_export_is_the_verb_and_the_sub_package_in_every_order(order: str) -> None:
    loaded(
        f"{order}\n"
        "import sys\n"
        "assert mx.export is sys.modules['mednext_edge.export']\n"
        "from mednext_edge.export.targets import TARGETS\n"
        "try:\n    mx.export(None)\n"
        "except TypeError as error:\n    assert \"'target'\" in str(error), error\n"
        "else:\n    raise AssertionError('the verb took a call without a target')"
    )
