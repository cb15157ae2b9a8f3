"""The declarations of OpenVINO's C API against OpenVINO's own headers, and how its library is found."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mednext_edge as mx
from benchmarks.edge.library import BACKEND, EdgeLibrary, Failure
from mednext_edge.data.volume import Volume
from tests.csrc.edge_bundles import compile_native, fake_task, installed_library, write_fake_bundle
from tests.csrc.host_library import compiler

TYPES = {"Version": "ov_version_t", "Dimension": "ov_dimension_t", "PartialShape": "ov_partial_shape_t"}


def openvino_include() -> Path:
    import openvino

    folder = Path(openvino.__file__).parent / "include"
    if not (folder / "openvino/c/openvino.h").is_file():
        pytest.skip(f"this openvino brings no C headers ({folder})")
    return folder


def test_declarations_are_those_of_openvino(csrc: Path, tmp_path: Path) -> None:
    """Every function: the same type, once the structures' names are OpenVINO's."""
    text = (csrc / "runtime/openvino_c.h").read_text()
    functions = re.findall(r"X\((.+?), (ov_\w+), (\(.*?\))\)\s*\\?$", text, re.MULTILINE)
    assert len(functions) == text.count("  X(")
    names = {**TYPES, "Devices": "ov_available_devices_t", "Status": "ov_status_e"}
    lines = ["#include <type_traits>", '#include "openvino/c/openvino.h"', f'#include "{csrc}/runtime/openvino_c.h"']
    for result, name, arguments in functions:
        for ours, theirs in names.items():
            result, arguments = (re.sub(rf"\b{ours}\b", theirs, part) for part in (result, arguments))
        lines.append(f'static_assert(std::is_same_v<decltype({name}), {result} {arguments}>, "{name}");')
    for ours, theirs in TYPES.items():
        lines.append(f"static_assert(sizeof({theirs}) == sizeof(mednext::openvino::{ours}));")
    lines.append("static_assert(offsetof(ov_version_t, buildNumber) == offsetof(mednext::openvino::Version, build));")
    lines.append("static_assert(OK == 0 && sizeof(ov_status_e) == sizeof(mednext::openvino::Status));")
    file = tmp_path / "declarations.cpp"
    file.write_text("\n".join(lines) + "\n")
    command = [compiler(), "-std=c++17", "-fsyntax-only", f"-I{openvino_include()}", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_wheel_beside_ours_is_found(tmp_path: Path) -> None:
    """In a process of its own, where nothing has loaded OpenVINO: the library is found and refuses what is no model."""
    bundle = write_fake_bundle(tmp_path / "bundle", fake_task())
    program = (
        "import ctypes, sys\n"
        "library = ctypes.CDLL(sys.argv[1]); library.mednext_last_error.restype = ctypes.c_char_p\n"
        "handle = ctypes.c_void_p()\n"
        "status = library.mednext_open(sys.argv[2].encode(), None, ctypes.byref(handle))\n"
        "print(status, library.mednext_last_error().decode())\n"
    )
    command = [sys.executable, "-c", program, str(installed_library()), str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{BACKEND} openvino 20")
    assert "cannot read the model" in done.stdout


def test_a_file_that_changes_while_the_bundle_is_open(tiny_bundle: Path, tmp_path: Path) -> None:
    """The weights that were checked are the ones that are used: nothing is read from the file later."""
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    weights = tmp_path / "bundle" / "model.bin"
    volume = Volume(np.random.default_rng(0).normal(size=(1, 17, 19, 18)).astype(np.float32), np.eye(4))
    with EdgeLibrary(installed_library()).open(tmp_path / "bundle") as model, mx.open(tmp_path / "bundle") as session:
        assert str(weights) not in Path("/proc/self/maps").read_text()
        native, ours = model.segment(volume), mx.predict(session, volume)
        with weights.open("r+b") as file:
            file.write(bytes(weights.stat().st_size))
        np.testing.assert_array_equal(model.segment(volume), native)
        np.testing.assert_array_equal(mx.predict(session, volume), ours)
        with weights.open("r+b") as file:
            file.truncate(0)
        np.testing.assert_array_equal(model.segment(volume), native)
        np.testing.assert_array_equal(mx.predict(session, volume), ours)


def test_a_missing_engine_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_fake_bundle(tmp_path / "bundle", fake_task())
    library = EdgeLibrary(Path(shutil.copy(installed_library(), tmp_path)))
    monkeypatch.setenv("MEDNEXT_OPENVINO_LIBRARY", str(tmp_path / "nowhere.so"))
    with (
        pytest.raises(Failure, match=r"OpenVINO was not found .*nowhere\.so.*pip install openvino") as caught,
        library.open(bundle),
    ):
        pass
    assert caught.value.status == BACKEND
    (other := tmp_path / "other.cpp").write_text("int nothing() { return 0; }\n")
    compile_native([other], tmp_path / "other.so", "-shared", "-fPIC")
    monkeypatch.setenv("MEDNEXT_OPENVINO_LIBRARY", str(tmp_path / "other.so"))
    with pytest.raises(Failure, match=r"other\.so has no function ov_\w+; another version"), library.open(bundle):
        pass


def test_targets_without_a_backend_are_named(fake_edge: EdgeLibrary, tmp_path: Path) -> None:
    for target in ("onnx", "trt", "trt-rtx"):
        bundle = write_fake_bundle(tmp_path / target, fake_task(), target=target)
        with pytest.raises(Failure, match=rf"target {target}.*--target openvino") as caught, fake_edge.open(bundle):
            pass
        assert caught.value.status == BACKEND
    with (
        pytest.raises(Failure, match=r"(?s)cannot compile this model for GPU.*has: CPU") as caught,
        fake_edge.open(write_fake_bundle(tmp_path / "gpu", fake_task()), device="GPU"),
    ):
        pass
    assert caught.value.status == BACKEND
