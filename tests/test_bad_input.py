"""What strangers feed the programs: each refusal says why with the right exit code, and leaves nothing half-written.

Odd images that are not wrong, and checkpoints of other projects, must work.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import pytest
import torch

import mednext_edge as mx
from mednext_edge.bundle import read_manifest, verify
from mednext_edge.checkpoints import load, save
from mednext_edge.cli.main import edge_app, export_app, run
from mednext_edge.models.loaded import LoadedModel
from tests.checkpoints.writers import SMALL, network, write_nnunet_v1, write_nnunet_v2
from tests.cli.conftest import Done
from tests.training.blobs import write_blobs

ROOT = Path(__file__).resolve().parents[1]
Call = Callable[..., Done]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """`mednext-export`, or `mednext-edge` with a command, run in an empty folder of its own."""
    monkeypatch.delenv("MEDNEXT_DEBUG", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def do(*args: object) -> Done:
        words = [str(a) for a in args]
        if words[0] == "mednext-export":
            code = run(export_app(), "mednext-export", words[1:])
        else:
            code = run(edge_app(), "mednext-edge", words)
        return Done(code, *capsys.readouterr())

    return do


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("data") / "blobs", cases=4)


@pytest.fixture(scope="session")
def checkpoint(tiny_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save(folder, tiny_model, dtype=torch.float32)
    return folder


@pytest.fixture(scope="session")
def bundle(tiny_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as ONNX in FP32; read only."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny.onnx-fp32"
    mx.export(tiny_model, target="onnx", out=folder)
    return folder


def refused(done: Done, code: int, *words: str) -> None:
    """One line on stderr with these words, nothing on stdout."""
    assert (done.code, done.out) == (code, ""), done.err
    assert done.err.count("error: ") == 1
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err, done.err


def nothing_in(folder: Path) -> None:
    assert [entry.name for entry in folder.rglob("*")] == []


def write_image(path: Path, array: np.ndarray[Any, Any], affine: np.ndarray[Any, Any] | None = None) -> Path:
    """A NIfTI file, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def noise(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# Checkpoints that are none


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.mark}",))


def truncated(path: Path, _: Path) -> None:
    torch.save(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-2000])


def empty(path: Path, _: Path) -> None:
    path.write_bytes(b"")


def picture(path: Path, _: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))


def other_network(path: Path, _: Path) -> None:
    torch.save(torch.nn.Linear(3, 4).state_dict(), path)


def hostile_zip(path: Path, mark: Path) -> None:
    torch.save({"state_dict": network().state_dict(), "epoch": Hostile(mark)}, path)


def hostile_pickle(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Hostile(mark)}))


def infinite(path: Path, _: Path) -> None:
    state = network().state_dict()
    state["stem.weight"][0] = float("nan")
    torch.save(state, path)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (truncated, ("damaged",)),
        (empty, ("empty",)),
        (picture, ("not a checkpoint",)),
        (other_network, ("MedNeXt",)),
        (hostile_zip, ("system",)),
        (hostile_pickle, ("system",)),
        (infinite, ("stem.weight", "NaN")),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.parametrize("command", ["mednext-export", "inspect", "predict"])
def test_files_that_are_no_checkpoint(
    call: Call,
    work: Path,
    tmp_path: Path,
    data: Path,
    command: str,
    write: Callable[[Path, Path], None],
    words: tuple[str, ...],
) -> None:
    file, mark = tmp_path / "model.pth", tmp_path / "mark"
    write(file, mark)
    more = ["-i", data / "imagesTr", "-o", "labels"] if command == "predict" else []
    refused(call(command, file, *more), 1, *words)
    assert not mark.exists()
    nothing_in(work)


def test_a_checkpoint_that_is_not_there(call: Call, work: Path) -> None:
    refused(call("mednext-export", "/nowhere/model.pth"), 1, "/nowhere/model.pth")
    nothing_in(work)


# Data that does not fit the network


def test_wrong_channel_count(call: Call, work: Path, checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    two = tmp_path / "two"
    for name in ("a", "b"):
        write_image(two / "imagesTr" / f"{name}_0000.nii.gz", noise(20, 20, 20))
        write_image(two / "imagesTr" / f"{name}_0001.nii.gz", noise(20, 20, 20))
        write_image(two / "labelsTr" / f"{name}.nii.gz", np.ones((20, 20, 20), np.uint8))
    export = ("mednext-export", checkpoint, "--target", "onnx")
    refused(call(*export, "--int8", "--calib", two), 1, "2 channels", "takes 1")
    refused(call(*export, "--validate", two), 1, "2 channels", "takes 1")
    refused(call(*export, "--int8", "--calib", two / "imagesTr"), 1, "2 channels", "expected 1")
    nothing_in(work)
    done = call("predict", bundle, "-i", two / "imagesTr", "-o", "labels")
    assert done.code == 1
    assert "found an image of 2 channels; expected 1" in done.err
    assert "2 of 2 images could not be predicted" in done.err
    nothing_in(work / "labels")


def test_wrong_class_count(call: Call, work: Path, checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "four"
    for name in ("a", "b"):
        write_image(folder / "imagesTr" / f"{name}.nii.gz", noise(20, 20, 20))
        labels = np.zeros((20, 20, 20), np.uint8)
        labels[3:6], labels[8:11] = 1, 3
        write_image(folder / "labelsTr" / f"{name}.nii.gz", labels)
    for flag in ("--calib", "--validate"):
        refused(call("mednext-export", checkpoint, "--int8", "--calib", folder, flag, folder), 1, "label values [3]")
    nothing_in(work)
    refused(call("validate", bundle, "--data", folder), 1, "[3]")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers(
    call: Call, work: Path, checkpoint: Path, bundle: Path, tmp_path: Path, value: float
) -> None:
    image = noise(20, 20, 20)
    image[3, 4, 5] = value
    folder = write_image(tmp_path / "images" / "a.nii.gz", image).parent
    refused(call("mednext-export", checkpoint, "--target", "onnx", "--int8", "--calib", folder), 1, "1 NaN or infinite")
    nothing_in(work)
    done = call("predict", bundle, "-i", folder, "-o", "labels")
    assert done.code == 1
    assert "holds 1 NaN or infinite voxels" in done.err
    nothing_in(work / "labels")


def test_two_dimensional_image_for_a_three_dimensional_network(
    call: Call, work: Path, checkpoint: Path, bundle: Path, tmp_path: Path
) -> None:
    folder = write_image(tmp_path / "images" / "flat.nii.gz", noise(20, 20)).parent
    done = call("predict", bundle, "-i", folder, "-o", "labels")
    assert done.code == 1
    assert "expected a 3-D image (a single slice as X x Y x 1)" in done.err
    nothing_in(work / "labels")
    refused(
        call("mednext-export", checkpoint, "--target", "onnx", "--int8", "--calib", folder), 1, "expected a 3-D image"
    )
    assert not (work / "tiny.onnx-int8").exists()


def test_empty_calibration_folder(call: Call, work: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    export = ("mednext-export", checkpoint, "--int8", "--calib")
    refused(call(*export, tmp_path / "none"), 1, str(tmp_path / "none"), "dataset.json", "imagesTr")
    for sub in ("imagesTr", "labelsTr"):
        (tmp_path / "none" / sub).mkdir()
    refused(call(*export, tmp_path / "none"), 1, "no NIfTI file")
    refused(call(*export, tmp_path / "absent"), 1, "no such folder")
    nothing_in(work)


def test_constant_calibration_images(call: Call, work: Path, checkpoint: Path, tmp_path: Path) -> None:
    folder = write_image(tmp_path / "images" / "a.nii.gz", np.full((20, 20, 20), 7, np.int16)).parent
    refused(call("mednext-export", checkpoint, "--target", "onnx", "--int8", "--calib", folder), 1, "one value only")
    nothing_in(work)


@pytest.mark.parametrize(
    ("lost", "words"), [("imagesTr", "labels in"), ("labelsTr", "images in")], ids=["no image", "no label"]
)
def test_label_without_image_and_image_without_label(
    call: Call, work: Path, checkpoint: Path, data: Path, tmp_path: Path, lost: str, words: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    (copy / lost / "case1.nii.gz").unlink()
    export = ("mednext-export", checkpoint, "--int8", "--calib", copy)
    refused(call(*export), 1, "1 files of dataset.json are missing", "case1.nii.gz")
    (copy / "dataset.json").unlink()
    refused(call(*export), 1, f"1 {words}", "the first is `case1`")
    nothing_in(work)


# Images that are odd, but not wrong


@pytest.mark.parametrize(
    "shape",
    [(5, 6, 7), (16, 16, 16), (17, 33, 15), (30, 30, 1), (1, 40, 9), (1, 1, 1), (64, 3, 20)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_any_size_is_segmented(call: Call, work: Path, bundle: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = write_image(tmp_path / "odd.nii.gz", 100 + noise(*shape))
    done = call("predict", bundle, "-i", image, "-o", "labels", "--disable_tta")
    assert done.code == 0, done.err
    labels = nib.load(work / "labels" / "odd.nii.gz")
    assert labels.shape == shape
    assert set(np.unique(labels.dataobj)) <= {0, 1, 2}


def oblique() -> np.ndarray[Any, Any]:
    a, b = np.radians(25), np.radians(-15)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.7, 1.1, 2.0])
    affine[:3, 3] = (-31.5, 12.25, 400)
    return affine


@pytest.mark.parametrize(
    "affine",
    [
        oblique(),
        np.diag([-1.0, -1.0, 1.0, 1.0]),
        np.diag([1.0, -0.5, -2.0, 1.0]),
        np.array([[0, 0, 3.0, 5], [1.0, 0, 0, -7], [0, -1.0, 0, 9], [0, 0, 0, 1]]),
    ],
    ids=["oblique", "LPS", "flipped", "permuted"],
)
def test_geometry_is_kept(
    call: Call, work: Path, bundle: Path, checkpoint: Path, tmp_path: Path, affine: np.ndarray[Any, Any]
) -> None:
    image = write_image(tmp_path / "image.nii.gz", 100 + noise(18, 21, 13), affine)
    for out, source in (("bundle", bundle), ("network", checkpoint)):
        done = call("predict", source, "-i", image, "-o", out, "--disable_tta")
        assert done.code == 0, done.err
    ours, theirs = (nib.load(work / out / "image.nii.gz") for out in ("bundle", "network"))
    assert ours.shape == (18, 21, 13)
    np.testing.assert_allclose(ours.affine, affine, atol=1e-4)
    assert ours.header.get_zooms() == pytest.approx(nib.load(image).header.get_zooms(), rel=1e-5)
    assert (np.asarray(ours.dataobj) == np.asarray(theirs.dataobj)).mean() > 0.999


def test_export_with_small_and_odd_images(call: Call, work: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Calibration images smaller than the patch, of one slice, oblique: no reason to fail."""
    folder = tmp_path / "images"
    write_image(folder / "small.nii.gz", 100 + noise(9, 5, 7))
    write_image(folder / "slice.nii.gz", 100 + noise(30, 30, 1))
    write_image(folder / "oblique.nii.gz", 100 + noise(20, 20, 20), oblique())
    done = call("mednext-export", checkpoint, "--target", "onnx", "--int8", "--calib", folder, "--calib-samples", 4)
    assert done.code == 0, done.err
    assert verify(work / "tiny.onnx-int8").gate.status == "not_run"


# Interrupted and full


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("force", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize(("fail", "code"), [(full, 1), (interrupted, 130)], ids=["disk full", "Ctrl-C"])
def test_an_export_that_stops_leaves_what_was_there(
    call: Call,
    work: Path,
    checkpoint: Path,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[..., None],
    code: int,
    force: bool,
) -> None:
    before: dict[str, bytes] = {}
    if force:
        shutil.copytree(bundle, work / "out")
        before = {f.name: f.read_bytes() for f in (work / "out").iterdir()}
    # The graph is on the disk by then, the manifest is not.
    monkeypatch.setattr(onnx.checker, "check_model", fail)
    done = call("mednext-export", checkpoint, "--target", "onnx", "--out", "out", *(["--force"] if force else []))
    assert done.code == code
    if fail is full:
        refused(done, 1, "the disk or quota of", "is full", "Free some space or choose another --out")
    assert [entry.name for entry in work.iterdir()] == (["out"] if force else [])
    if force:
        assert {f.name: f.read_bytes() for f in (work / "out").iterdir()} == before


KILLED = """
import os, signal, sys
import onnx
from mednext_edge.cli.main import export_app, run

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

onnx.checker.check_model = die
run(export_app(), "mednext-export", sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_export_leaves_no_bundle_and_the_next_one_cleans_up(call: Call, work: Path, checkpoint: Path) -> None:
    args = [str(checkpoint), "--target", "onnx", "--out", str(work / "out")]
    done = subprocess.run([sys.executable, "-c", KILLED, *args], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [entry.name for entry in work.iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".out.tmp-")
    assert call("mednext-export", *args).code == 0
    assert [entry.name for entry in work.iterdir()] == ["out"]
    assert call("verify", work / "out").code == 0


# Bundles that were changed


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "manifest.sha256"])
@pytest.mark.parametrize("command", ["verify", "predict", "validate", "bench"])
def test_a_flipped_byte_in_a_bundle(
    call: Call, work: Path, bundle: Path, data: Path, tmp_path: Path, name: str, command: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    more = {"predict": ["-i", data / "imagesTr", "-o", "labels"], "validate": ["--data", data]}.get(command, [])
    refused(call(command, copy, *more), 6, str(copy))
    nothing_in(work)


# Names and values that do not exist


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["mednext-export", "--target", "openvion"], "Did you mean `openvino`?"),
        (["mednext-export", "--precision", "fp23"], "Did you mean `fp32`?"),
        (["mednext-export", "--metric", "dics"], "Did you mean `dice`?"),
        (["mednext-export", "demo:brain-tisue"], "unknown demo model `brain-tisue`"),
        (["mednext-export", "--max-drop", "1.5"], "--max-drop"),
        (["mednext-export", "--patch", "twenty"], "--patch"),
        (["mednext-export", "--calib-samples", "0"], "--calib-samples"),
        (["exprt"], "export"),
        (["train", "demo:brain-tisue", "-o", "run"], "Did you mean `demo:brain-tissue`?"),
    ],
)
def test_unknown_names_and_values(call: Call, work: Path, args: list[str], words: str) -> None:
    done = call(*args)
    assert (done.code, done.out) == (2, ""), done.err
    assert words in " ".join(done.err.split())
    nothing_in(work)


def test_a_drop_beyond_the_limit(call: Call, work: Path, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """References are the FP32 network's own answers, so that INT8 must lose something against them."""
    assert call("predict", checkpoint, "-i", data / "imagesTr", "-o", tmp_path / "labels", "--disable_tta").code == 0
    where = f"{data / 'imagesTr'},{tmp_path / 'labels'}"
    export = ("mednext-export", checkpoint, "--target", "onnx", "--int8", "--calib", where, "--calib-samples", 2)
    done = call(*export, "--max-drop", 0, "--out", "out", "--json")
    assert done.code == 3, done.err
    assert "Dice drops by" in done.err
    assert "out is kept, marked as failed" in done.err
    assert done.json["gate"]["status"] == "failed"
    manifest = verify(work / "out")
    assert manifest.gate.status == "failed"
    assert manifest.gate.drop is not None
    assert manifest.gate.drop > 0
    report = json.loads((work / "out" / "report.json").read_text())
    assert report["accuracy"]["baseline"]["dice_mean"] == pytest.approx(1)
    assert "report.md" in {entry.path for entry in manifest.files}
    # The same export passes where the drop is allowed.
    assert call(*export, "--max-drop", 1, "--out", "other").code == 0
    assert read_manifest(work / "other").gate.status == "passed"


# Checkpoints of other projects, all the way


@pytest.mark.parametrize("write", [write_nnunet_v1, write_nnunet_v2])
def test_nnunet_folders_load_predict_and_export(
    call: Call, work: Path, tmp_path: Path, data: Path, write: Callable[..., Path]
) -> None:
    fold = write(tmp_path / "results") / "fold_0"
    described = call("inspect", fold, "--json")
    assert described.code == 0, described.err
    image = data / "imagesTr" / "case0.nii.gz"
    assert call("predict", fold, "-i", image, "-o", "network", "--disable_tta").code == 0
    done = call("mednext-export", fold, "--target", "onnx", "--out", "out", "--json")
    assert done.code == 0, done.err
    manifest = verify(work / "out")
    assert manifest.preprocessing == load(fold).task.preprocessing
    assert call("predict", work / "out", "-i", image, "-o", "bundle", "--disable_tta").code == 0
    ours, theirs = (nib.load(work / name / "case0.nii.gz") for name in ("bundle", "network"))
    assert ours.shape == nib.load(image).shape
    assert (np.asarray(ours.dataobj) == np.asarray(theirs.dataobj)).mean() > 0.999


def test_a_mednext_of_monai_converts_exactly(call: Call, work: Path, tmp_path: Path) -> None:
    from monai.networks.nets import MedNeXt

    torch.manual_seed(0)
    theirs = MedNeXt(
        spatial_dims=3,
        init_filters=4,
        in_channels=1,
        out_channels=3,
        encoder_expansion_ratio=2,
        decoder_expansion_ratio=2,
        bottleneck_expansion_ratio=2,
        kernel_size=3,
        use_residual_connection=True,
        blocks_down=(2, 2, 2, 2),
        blocks_bottleneck=2,
        blocks_up=(2, 2, 2, 2),
    ).eval()
    torch.save(theirs.state_dict(), tmp_path / "monai.pth")
    x = torch.randn(1, 1, 32, 16, 16)
    with torch.no_grad():
        expected = theirs.double()(x.double())
        ours = load(tmp_path / "monai.pth").net.double()(x.double())
    assert float((ours - expected).abs().max() / expected.abs().max()) <= 1e-12
    done = call("mednext-export", tmp_path / "monai.pth", "--target", "onnx", "--patch", 32, 16, 16, "--out", "out")
    assert done.code == 0, done.err
    with mx.open(work / "out") as session:
        found = session.run(x.numpy())
    assert np.abs(found - expected.numpy()).max() <= 1e-4 * float(expected.abs().max())


def test_a_network_of_two_dimensions_goes_all_the_way(call: Call, work: Path, tmp_path: Path, data: Path) -> None:
    """A 2-D network segments volumes slice by slice, and is calibrated on their slices."""
    torch.save(network(replace(SMALL, spatial_dims=2)).state_dict(), tmp_path / "flat.pth")
    export = ("mednext-export", tmp_path / "flat.pth", "--target", "onnx", "--patch", 32, 32, "--calib-samples", 2)
    done = call(*export, "--int8", "--calib", data / "imagesTr", "--out", "out")
    assert done.code == 0, done.err
    image = data / "imagesTr" / "case0.nii.gz"
    assert call("predict", work / "out", "-i", image, "-o", "labels", "--disable_tta").code == 0
    assert nib.load(work / "labels" / "case0.nii.gz").shape == nib.load(image).shape
