"""The examples, built against the installed package and run on real files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import mednext_edge as mx
from benchmarks.edge.library import EdgeLibrary
from mednext_edge.data.volume import Volume, read_labels
from mednext_edge.task import Normalization, Preprocessing
from tests.csrc.edge_bundles import HERE, fake_task, installed_library, write_fake_bundle

EXAMPLES = HERE.parents[1] / "examples"
AFFINE = np.array([[-0.9, 0.1, 0, 3], [0.1, 0.9, 0, -7], [0, 0, 1.2, 11], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built programs, against a package that was copied elsewhere: nothing in it names its place."""
    # That of scripts/check is beside the interpreter.
    cmake = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if cmake is None:
        pytest.skip("no cmake")
    out = tmp_path_factory.mktemp("examples")
    installed = installed_library().parents[1]
    prefix = tmp_path_factory.mktemp("elsewhere") / installed.name
    for folder in ("lib", "include"):
        shutil.copytree(installed / folder, prefix / folder)
    configure = [
        cmake,
        "-S",
        str(EXAMPLES),
        "-B",
        str(out),
        f"-DCMAKE_PREFIX_PATH={prefix}",
        "-DCMAKE_BUILD_TYPE=Debug",
    ]
    strict = [f"-DCMAKE_{language}_FLAGS=-Wall -Wextra -Wpedantic -Werror" for language in ("C", "CXX")]
    for command in ([*configure, *strict], [cmake, "--build", str(out)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return out


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)


def test_scanner_gives_the_labels_of_python(
    examples: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    monkeypatch.setenv("MEDNEXT_OPENVINO_LIBRARY", str(Path(openvino.__file__).parent / "libs"))
    voxels = np.random.default_rng(0).normal(100, 30, (19, 17, 21)).astype(np.int16)
    image = nib.Nifti1Image(voxels, AFFINE)
    image.header.set_slope_inter(0.5, 3)
    nib.save(image, tmp_path / "image.nii")
    done = run(examples / "scanner", tiny_bundle, tmp_path / "image.nii", tmp_path / "labels.nii", "--mirror")
    assert done.returncode == 0, done.stderr
    assert "8 of 8 patches" in done.stderr
    assert "peak memory" in done.stderr
    labels = read_labels(tmp_path / "labels.nii")
    with mx.open(tiny_bundle) as session:
        expected = mx.predict(session, tmp_path / "image.nii", mirror=True)
    assert (labels.array != expected).sum() <= 1e-4 * expected.size
    np.testing.assert_array_equal(labels.affine, nib.load(tmp_path / "image.nii").affine)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("program", ["scanner", "scanner_stream"])
def test_a_demo_case_in_c_and_in_cpp(
    examples: Path, demo_bundle: Path, hippocampus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """The shipped model on a real case: Python's label on 99.99 % of the voxels."""
    import openvino

    monkeypatch.setenv("MEDNEXT_OPENVINO_LIBRARY", str(Path(openvino.__file__).parent / "libs"))
    case = sorted((hippocampus / "imagesTr").glob("*.nii.gz"))[0]
    nib.save(nib.load(case), tmp_path / "image.nii")
    done = run(examples / program, demo_bundle, tmp_path / "image.nii", tmp_path / "labels.nii")
    assert done.returncode == 0, done.stderr
    with mx.open(demo_bundle) as session:
        expected = mx.predict(session, case)
    assert len(np.unique(expected)) == 3
    assert (read_labels(tmp_path / "labels.nii").array != expected).sum() <= 1e-4 * expected.size


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (2, 3)])
def test_stream_reads_either_geometry(
    examples: Path, fake_edge: EdgeLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: tuple[int, int]
) -> None:
    recipe = Preprocessing(normalization=(Normalization(scheme="none"),), orientation="LAS")
    bundle = write_fake_bundle(tmp_path / "bundle", fake_task(recipe))
    voxels = np.random.default_rng(0).integers(0, 4, (19, 17, 40)).astype(np.uint8)
    image = nib.Nifti1Image(voxels, AFFINE)
    image.set_sform(AFFINE if codes[0] else None, codes[0])
    image.set_qform(AFFINE, codes[1])
    nib.save(image, tmp_path / "image.nii")
    monkeypatch.setenv("MEDNEXT_OPENVINO_LIBRARY", str(fake_edge.folder))
    done = run(examples / "scanner_stream", bundle, tmp_path / "image.nii", tmp_path / "labels.nii", "2")
    assert done.returncode == 0, done.stderr
    with fake_edge.open(bundle) as model:
        stored = nib.load(tmp_path / "image.nii")
        volume = Volume(np.ascontiguousarray(voxels.T[np.newaxis]), stored.affine)
        np.testing.assert_array_equal(read_labels(tmp_path / "labels.nii").array, model.segment(volume))


def test_examples_say_what_is_wrong(examples: Path, tmp_path: Path) -> None:
    (tmp_path / "short.nii").write_bytes(bytes(100))
    for program in ("scanner", "scanner_stream"):
        assert run(examples / program).returncode == 2
        done = run(examples / program, tmp_path, tmp_path / "short.nii", tmp_path / "out.nii")
        assert done.returncode == 1
        assert "is no uncompressed NIfTI-1 file" in done.stderr
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.float32), AFFINE), tmp_path / "image.nii")
    for program in ("scanner", "scanner_stream"):
        done = run(examples / program, tmp_path, tmp_path / "image.nii", tmp_path / "out.nii")
        assert done.returncode == 1
        assert "is not a bundle" in done.stderr
    whole = (tmp_path / "image.nii").read_bytes()
    (tmp_path / "cut.nii").write_bytes(whole[:-1])
    assert "ends before its last voxel" in run(examples / "scanner", tmp_path, tmp_path / "cut.nii", "x").stderr
    assert not (tmp_path / "out.nii").exists()
