"""The whole C interface under AddressSanitizer, UndefinedBehaviorSanitizer, ThreadSanitizer and valgrind."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.edge.library import EdgeLibrary
from mednext_edge.task import Normalization, Preprocessing
from tests.csrc.edge_bundles import (
    HERE,
    compile_native,
    fake_task,
    installed_library,
    one_file,
    runtime_flags,
    write_fake_bundle,
)

NONE = (Normalization(scheme="none"),)
RECIPES = {
    "whole volume": Preprocessing(normalization=(Normalization(masked=True),), spacing=(1.2, 0.9, 1)),
    "early": Preprocessing(normalization=NONE, orientation="RAS"),
    "late": Preprocessing(normalization=NONE, orientation="RAS", spacing=(1.2, 1.2, 1.2), crop_nonzero=False),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bundles")
    tasks = {name: fake_task(recipe, mirror_axes=(0, 1)) for name, recipe in RECIPES.items()}
    tasks["classes"] = fake_task(kind="classification", average="logits")
    return [write_fake_bundle(folder / name, task) for name, task in tasks.items()]


def exercise(*command: str | Path, openvino: Path) -> None:
    environment = {**os.environ, "MEDNEXT_OPENVINO_LIBRARY": str(openvino), "ASAN_OPTIONS": "detect_leaks=1"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-8000:]


@pytest.mark.parametrize("kind", ["address,undefined", "thread"])
def test_sanitizers(kind: str, bundles: list[Path], fake_edge: EdgeLibrary, csrc: Path, tmp_path: Path) -> None:
    sanitize = (f"-fsanitize={kind}", "-fno-sanitize-recover=all", "-g", "-O0")
    try:
        compile_native([_empty(tmp_path)], tmp_path / "empty", *sanitize)
    except AssertionError as error:
        pytest.skip(f"the compiler has no -fsanitize={kind}: {error}")
    sources = [one_file(csrc, tmp_path, HERE / "exercise.cpp")]
    program = compile_native(sources, tmp_path / "exercise", *runtime_flags(csrc), *sanitize)
    for bundle in bundles:
        exercise(program, bundle, "2" if kind == "thread" else "1", openvino=fake_edge.folder)


def _empty(folder: Path) -> Path:
    file = folder / "empty.cpp"
    file.write_text("int main() { return 0; }\n")
    return file


def test_valgrind(bundles: list[Path], fake_edge: EdgeLibrary, csrc: Path, tmp_path: Path) -> None:
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        pytest.skip("no valgrind (Debian package valgrind)")
    library = installed_library()
    link = (f"-I{csrc / 'include'}", "-O1", str(library), f"-Wl,-rpath,{library.parent}")
    program = compile_native([HERE / "exercise.cpp"], tmp_path / "exercise", *link)
    leaks = ("--leak-check=full", "--errors-for-leak-kinds=definite,indirect", "--error-exitcode=9", "-q")
    exercise(valgrind, *leaks, program, bundles[1], openvino=fake_edge.folder)
