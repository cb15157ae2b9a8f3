"""The C interface under AddressSanitizer, UndefinedBehaviorSanitizer, ThreadSanitizer and valgrind.

Around a network of one line everything, and around OpenVINO what the sanitizers take.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
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
    film = Preprocessing(colour="grey", normalization=NONE)
    tasks["film"] = fake_task(film, patch=(16, 12))
    tasks["classes"] = fake_task(kind="classification", average="logits")
    return [write_fake_bundle(folder / name, task) for name, task in tasks.items()]


@pytest.fixture(scope="module")
def sanitized(csrc: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`exercise.cpp` with the whole runtime, built under a sanitizer, once for each."""

    @functools.cache
    def build(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("sanitized")
        sanitize = (f"-fsanitize={kind}", "-fno-sanitize-recover=all", "-g", "-O0")
        (empty := folder / "empty.cpp").write_text("int main() { return 0; }\n")
        try:
            compile_native([empty], folder / "empty", *sanitize)
        except AssertionError as error:
            pytest.skip(f"the compiler has no -fsanitize={kind}: {error}")
        sources = [one_file(csrc, folder, HERE / "exercise.cpp")]
        return compile_native(sources, folder / "exercise", *runtime_flags(csrc), *sanitize)

    return build


def exercise(*command: str | Path, openvino: Path) -> None:
    environment = {
        **os.environ,
        "MEDNEXT_OPENVINO_LIBRARY": str(openvino),
        "ASAN_OPTIONS": "detect_leaks=1",
        "TBB_ENABLE_SANITIZERS": "1",  # or it loads its parts with RTLD_DEEPBIND, which sanitizers do not allow
    }
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-8000:]


@pytest.mark.parametrize("kind", ["address,undefined", "thread"])
def test_sanitizers(kind: str, sanitized: Callable[[str], Path], bundles: list[Path], fake_edge: EdgeLibrary) -> None:
    for bundle in bundles:
        exercise(sanitized(kind), bundle, "2" if kind == "thread" else "1", openvino=fake_edge.folder)


def openvino_libraries() -> Path:
    import openvino

    return Path(openvino.__file__).parent / "libs"


@pytest.mark.slow
def test_address_sanitizer_with_openvino(sanitized: Callable[[str], Path], tiny_bundle: Path) -> None:
    """Everything again around the real engine: what goes over the border to it, and what it gives back."""
    exercise(sanitized("address,undefined"), tiny_bundle, openvino=openvino_libraries())


def memcheck(*options: str) -> tuple[str, ...]:
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        pytest.skip("no valgrind (Debian package valgrind)")
    return (
        valgrind,
        "--leak-check=full",
        "--errors-for-leak-kinds=definite,indirect",
        "--error-exitcode=9",
        "-q",
        *options,
    )


def link(csrc: Path) -> tuple[str, ...]:
    library = installed_library()
    return f"-I{csrc / 'include'}", "-O1", str(library), f"-Wl,-rpath,{library.parent}"


def test_valgrind(bundles: list[Path], fake_edge: EdgeLibrary, csrc: Path, tmp_path: Path) -> None:
    command = memcheck()
    program = compile_native([HERE / "exercise.cpp"], tmp_path / "exercise", *link(csrc))
    exercise(*command, program, bundles[1], openvino=fake_edge.folder)


# glibc's loader reads short paths in whole words. Nothing of OpenVINO's needs an entry.
SUPPRESSED = """{
   loader
   Memcheck:Addr8
   fun:strncmp
   fun:is_dst
   ...
}
"""


@pytest.mark.slow
def test_valgrind_with_openvino(tiny_bundle: Path, csrc: Path, tmp_path: Path) -> None:
    (suppressed := tmp_path / "suppressed").write_text(SUPPRESSED)
    # Generated code has longer blocks without a branch than valgrind's translator takes at once.
    command = memcheck("--vex-guest-max-insns=20", f"--suppressions={suppressed}")
    program = compile_native([HERE / "once.cpp"], tmp_path / "once", *link(csrc))
    exercise(*command, program, tiny_bundle, openvino=openvino_libraries())
