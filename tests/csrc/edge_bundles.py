"""Bundles for the C++ runtime, and the same network in Python: `fake_openvino.cpp` says what it computes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from benchmarks.edge.library import EdgeLibrary
from mednext_edge import cpu
from mednext_edge.bundle import BundleWriter, Engine, InputSpec, Manifest, OutputSpec
from mednext_edge.models.loaded import Source
from mednext_edge.runtime.session import Array, Session
from mednext_edge.task import Inference, ModelSpec, Preprocessing, Region, Task
from tests.csrc.host_library import compiler

HERE = Path(__file__).parent


def fake_task(
    preprocessing: Preprocessing | None = None,
    classes: int = 4,
    patch: tuple[int, ...] = (16, 16, 16),
    kind: Literal["segmentation", "classification"] = "segmentation",
    regions: tuple[Region, ...] = (),
    **inference: Any,
) -> Task:
    """With `regions` each has a name of `größe N`; they leave the values N."""
    recipe = preprocessing or Preprocessing()
    outputs = len(regions) or classes
    return Task(
        name="fake",
        model=ModelSpec(
            kind=kind,
            family="mednext",
            variant="S",
            kernel_size=3,
            spatial_dims=3 if len(patch) == 3 else 2,
            in_channels=len(recipe.normalization),
            classes=outputs,
            parameters=0,
            config={},
        ),
        preprocessing=recipe,
        inference=Inference.model_validate({"patch": patch, **inference}),
        labels={
            "background": 0,
            **{f"größe {i}": i for i in range(1, len(regions) + 1 if regions else max(2, classes))},
        },
        regions=regions,
    )


def write_fake_bundle(out: Path, task: Task, words: str = "", prefix: str = "", **changes: Any) -> Path:
    """A bundle whose network is `fake_openvino.cpp`'s."""
    layout = "NCDHW" if task.model.spatial_dims == 3 else "NCHW"
    shape = (None,) * task.model.spatial_dims
    patch = task.inference.patch
    answer = task.model.output_shape(shape)
    words = f"{words} whole" if task.model.kind == "classification" else words
    words = f"{words} regions" if task.regions else words
    manifest = Manifest(
        name=task.name,
        model=task.model,
        source=Source(format="none", file="none", sha256="0" * 64),
        input=InputSpec(shape=(1, task.model.in_channels, *shape), layout=layout, patch=patch),
        output=OutputSpec(shape=(1, *answer), layout=layout[: 1 + len(answer)]),
        preprocessing=task.preprocessing,
        inference=task.inference,
        labels=task.labels,
        regions=task.regions,
        target="openvino",
        precision="fp32",
        engine=Engine(file="model.xml", provider="openvino", provider_version="0"),
    ).model_copy(update=changes)
    writer = BundleWriter(out, force=True)
    with writer as folder:
        (folder / "model.xml").write_text(f"{prefix}classes {task.model.classes} {words}")
        (folder / "model.bin").write_bytes(bytes(1000))
        writer.commit(manifest)
    return out


class FakeNetwork(Session):
    """What `fake_openvino.cpp` computes; the patches it was given are kept."""

    provider = "fake"
    precision = "fp32"

    def __init__(self, task: Task) -> None:
        self.task, self.patch = task, task.inference.patch
        self.inputs: list[Array] = []

    def _run(self, x: Array) -> Array:
        self.inputs.append(x[0].copy())
        values = np.arange(self.task.model.classes, dtype=np.float32).reshape(1, -1, *[1] * (x.ndim - 2))
        if self.task.model.kind == "classification":
            x = x.reshape(*x.shape[:2], -1)
            x, values = x[:, :, x.shape[2] // 2], values.reshape(1, -1)
        distance: Array = x[:, :1] - values
        if self.task.model.classes == 1:
            return distance - 1
        return distance if self.task.regions else -(distance**2)

    def close(self) -> None:
        self.inputs.clear()


def compile_native(sources: list[Path], out: Path, *flags: str) -> Path:
    """Compile C++ files with the headers of csrc."""
    command = [compiler(), "-std=c++17", "-Wall", "-Wextra", "-Werror", *map(str, sources), *flags]
    done = subprocess.run([*command, "-o", str(out), "-ldl", "-pthread"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def one_file(csrc: Path, folder: Path, *more: Path, tensorrt: bool = False) -> Path:
    """All sources of the runtime in one, since the standard library's headers are most of the work."""
    left_out = {"cpu_features.cpp", "engine_tensorrt_absent.cpp" if tensorrt else "engine_tensorrt.cpp"}
    sources = [file for file in sorted((csrc / "runtime").glob("*.cpp")) if file.name not in left_out]
    everything = folder / "everything.cpp"
    everything.write_text("".join(f'#include "{file}"\n' for file in (*sources, *more)))
    return everything


def runtime_flags(csrc: Path) -> tuple[str, ...]:
    return ('-DMEDNEXT_EDGE_VERSION="0"', f"-I{csrc / 'include'}", f"-I{csrc / 'runtime'}")


def build_fake_openvino(folder: Path) -> Path:
    return compile_native([HERE / "fake_openvino.cpp"], folder / "libopenvino_c.so", "-O1", "-fPIC", "-shared")


def installed_library() -> Path:
    """libmednext_edge as the package brings it, or a skip where it is not built."""
    if sys.platform == "win32":
        pytest.skip("libmednext_edge is not built on Windows")
    found = cpu.edge_library()
    assert found is not None, "libmednext_edge is not installed; scripts/setup installs it"
    return found


def fake_library(folder: Path) -> EdgeLibrary:
    """The installed library with the fake OpenVINO behind it: a copy, which the loader takes for another library."""
    build_fake_openvino(folder)
    library = EdgeLibrary(Path(shutil.copy(installed_library(), folder)))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MEDNEXT_OPENVINO_LIBRARY", str(folder))
        with library.open(write_fake_bundle(folder / "first", fake_task())):
            pass  # the engine is looked for once a process
    return library
