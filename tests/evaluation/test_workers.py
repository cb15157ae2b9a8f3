"""Real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mednext_edge.errors import IntegrityError, MednextEdgeError, TargetUnavailableError, UsageError
from mednext_edge.evaluation.workers import Recipe, Side, Worker, export_in_process


def test_a_bundle_is_opened_and_timed(tiny_bundle: Path) -> None:
    with Worker(Side("this", str(tiny_bundle), threads=1)) as worker:
        assert (worker.patch, worker.channels) == ((16, 16, 16), 1)
        assert worker.engine.startswith("openvino ") and worker.engine.endswith(", fp32")
        assert 0 < worker.time() < 60_000
        assert 0 < worker.time(3) < 60_000
    with Worker(Side("this", str(tiny_bundle), threads=1, clock="cpu")) as worker:
        assert 0 < worker.time() < 60_000


def test_errors_come_back_as_what_they_are(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailableError, match=r"this: .*no OpenVINO device `GPU\.7`"):
        Worker(Side("this", str(tiny_bundle), device="GPU.7"))
    with pytest.raises(UsageError, match="multiples of"):
        Worker(Side("this", str(tiny_bundle), patch=(5, 5, 5)))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"this: .*broken"):
        Worker(Side("this", str(broken)))


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    """A package that kills its process when it is imported."""
    package = tmp_path / "mednext_edge"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import os, sys\nsys.stderr.write('out of luck')\nsys.stderr.flush()\nos._exit(3)\n"
    )
    with pytest.raises(MednextEdgeError, match="ended by itself; its last words: out of luck"):
        Worker(Side("this", "any", package=tmp_path))


FAKE = """
from types import SimpleNamespace


class Session:
    provider, precision, patch = "fake 1", "fp32", (8, 8)
    task = SimpleNamespace(model=SimpleNamespace(in_channels=2))

    def run(self, x):
        print("libraries print")
        assert x.shape == (1, 2, 8, 8)

    def close(self):
        pass


def load(source):
    return source


def open(model, device, threads, patch):
    return Session()


def export(model, *, target, precision, calibration, patch, out):
    out.mkdir()
    (out / "manifest.json").write_text(f"{model} {target} {precision} {calibration} {patch}")
"""


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A folder with another package of the same name."""
    package = tmp_path / "site" / "mednext_edge"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE)
    return package.parent


def test_the_package_of_another_revision_is_used(other: Path) -> None:
    with Worker(Side("reference", "weights", package=other)) as worker:
        assert worker.engine == "fake 1, fp32"
        assert (worker.patch, worker.channels) == ((8, 8), 2)
        assert worker.time(2) >= 0


def test_each_side_exports_with_its_own_package(other: Path, tmp_path: Path) -> None:
    side = Side("reference", "weights", package=other, patch=(8, 8), threads=2)
    made = export_in_process(side, Recipe("openvino", "fp32"), tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").read_text() == "weights openvino fp32 None (8, 8)"
    assert made == Side("reference", str(tmp_path / "out"), other, (8, 8), None, 2)


def test_a_package_that_is_not_there_is_not_replaced_by_ours(tmp_path: Path) -> None:
    with pytest.raises(MednextEdgeError, match=r"ModuleNotFoundError|was imported from"):
        Worker(Side("reference", "weights", package=tmp_path))
