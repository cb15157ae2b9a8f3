"""`mednext-edge train` when a run is disturbed, or goes on from what does not belong to it: no whole epoch is lost."""

from __future__ import annotations

import gzip
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mednext_edge.training.loop import Progress
from mednext_edge.training.state import BEST, LAST, LOG, PLAN, SUBJECT

from .conftest import Cli
from .small_sets import AFFINE, HELD, SHORT, TRAINED, TWO, voxel, words_of, write


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    """The weights that two epochs on `write`'s data come to."""
    from mednext_edge.cli.main import edge_app, run

    folder = tmp_path_factory.mktemp("undisturbed")
    args = ["train", write(folder / "data"), *TWO, "-o", folder / "run", "--no-progress"]
    assert run(edge_app(), "mednext-edge", [str(arg) for arg in args]) == 0
    yield (folder / "run" / "weights.safetensors").read_bytes()


def after_first_epoch(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do something once the first epoch is saved, while the second is trained."""

    def show(report: object, title: str, leads: bool, step: Progress) -> None:
        if step.step == 2:
            action()

    monkeypatch.setattr("mednext_edge.cli.train._show_step", show)


@pytest.mark.parametrize("damage", ["cut", "gone", "other shape", "lying header"])
def test_a_case_that_is_damaged_in_the_middle(
    edge: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: bytes, damage: str
) -> None:
    """Training images are in memory by then; those for validation are read again."""
    data, out = write(tmp_path / "data"), tmp_path / "run"
    image, trained = (data / "imagesTr" / f"{name}.nii.gz" for name in (HELD, TRAINED))
    whole, other = image.read_bytes(), trained.read_bytes()

    def harm() -> None:
        trained.write_bytes(other[:100])
        if damage == "gone":
            image.unlink()
        elif damage == "cut":
            image.write_bytes(whole[: len(whole) // 2])
        elif damage == "other shape":
            nib.save(nib.Nifti1Image(np.ones((18, 20, 9), np.float32), AFFINE), image)
        else:
            found = nib.load(image)
            found.header.set_data_shape((18, 20, 3000))
            broken = tmp_path / "broken.nii"
            broken.write_bytes(found.header.binaryblock + bytes(4) + found.get_fdata().astype(np.float32).tobytes())
            image.write_bytes(gzip.compress(broken.read_bytes()))

    with monkeypatch.context() as patch:
        after_first_epoch(patch, harm)
        done = edge("train", data, *TWO, "-o", out)
    assert (done.code, done.out) == (1, ""), done.err
    assert str(image) in words_of(done)
    assert "this was met when epoch 2 was validated, the first 1 epochs are saved: repair the file" in words_of(done)
    assert torch.load(out / LAST, weights_only=True)["counters"]["step"] == 2
    assert not (out / "weights.safetensors").exists()

    image.write_bytes(whole)
    trained.write_bytes(other)
    resumed = edge("train", data, *TWO, "-o", out, "--resume")
    assert resumed.code == 0, resumed.err
    assert (out / "weights.safetensors").read_bytes() == undisturbed


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="this system has no limit on the size of files")
def test_a_disk_that_takes_no_more(
    edge: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: bytes
) -> None:
    import resource

    data, out = write(tmp_path / "data"), tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    saved: dict[str, bytes] = {}

    def limit() -> None:
        saved.update({path.name: path.read_bytes() for path in out.iterdir()})
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))

    with monkeypatch.context() as patch:
        after_first_epoch(patch, limit)
        try:
            done = edge("train", data, *TWO, "-o", out)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (done.code, done.out) == (1, "")
    assert "pt cannot be written: File too large" in words_of(done)
    assert "what was saved before is whole: make room and go on with --resume" in words_of(done)
    # The epoch that could not be saved may be in the log; the state is that of the first one, and no part file is left.
    assert {path.name for path in out.iterdir()} == set(saved) == {BEST, LAST, LOG, PLAN, SUBJECT}
    assert (out / LAST).read_bytes() == saved[LAST]
    resumed = edge("train", data, *TWO, "-o", out, "--resume")
    assert resumed.code == 0, resumed.err
    assert (out / "weights.safetensors").read_bytes() == undisturbed


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of networks for two channels and for four classes."""
    from mednext_edge.cli.main import edge_app, run

    folder = tmp_path_factory.mktemp("foreign")
    sets = {
        "channels": write(folder / "a", image=lambda a: np.stack([a, a], -1), channels=("T1", "T2")),
        "classes": write(folder / "b", labels=voxel(3), names=("background", "one", "two", "three")),
    }
    for name, data in sets.items():
        args = ["train", data, *SHORT, "-o", folder / name, "--no-progress"]
        assert run(edge_app(), "mednext-edge", [str(arg) for arg in args]) == 0
    return {name: folder / name for name in sets}


@pytest.mark.parametrize("planned", [False, True], ids=["patch given", "patch planned"])
@pytest.mark.parametrize(
    ("flag", "network", "words"),
    [
        ("--upkern-from", "channels", "`stem.weight` has shape (32, 2, 1, 1, 1), for 2 channels; data has 1 (MRI)"),
        ("--init", "channels", "`stem.weight` has shape (32, 2, 1, 1, 1), for 2 channels; data has 1 (MRI)"),
        ("--qat", "channels", "`stem.weight` has shape (32, 2, 1, 1, 1), for 2 channels; data has 1 (MRI)"),
        ("--upkern-from", "classes", "`out_0.conv_out.weight` has shape (32, 4, 1, 1, 1) in the source, (32, 3"),
        ("--init", "classes", "`out_0.conv_out.weight` is (32, 4, 1, 1, 1), this plan needs (32, 3, 1, 1, 1)"),
    ],
)
def test_a_start_from_another_network(
    edge: Cli, tmp_path: Path, foreign: dict[str, Path], flag: str, network: str, words: str, planned: bool
) -> None:
    size = [] if planned else SHORT[6:10]
    command = ("train", write(tmp_path / "data"), "--epochs", 1, "--steps", 1, *size, "-o", tmp_path / "run")
    done = edge(*command, flag, foreign[network])
    assert (done.code, done.out) == (1, ""), done.err
    assert f"{foreign[network]}" in words_of(done)
    assert words in words_of(done)
    assert not (tmp_path / "run").exists()


def test_labels_that_a_checkpoint_for_int8_does_not_know(edge: Cli, tmp_path: Path, foreign: dict[str, Path]) -> None:
    five = write(tmp_path / "five", labels=voxel(4), names=("background", "one", "two", "three", "four"))
    done = edge("train", five, "--qat", foreign["classes"], "-o", tmp_path / "run")
    assert (done.code, "five has the label values [4]; " in words_of(done)) == (1, True)
    other = write(tmp_path / "other", labels=voxel(3), names=("background", "one", "2nd", "three"))
    said = edge("train", other, "--qat", foreign["classes"], "-o", tmp_path / "run", "--plan-only")
    assert said.code == 0, said.err
    assert f"the label 2 is `2nd` in other and `two` in {foreign['classes']}" in words_of(said)


def test_resume_with_what_is_of_another_network(edge: Cli, tmp_path: Path, foreign: dict[str, Path]) -> None:
    data, out = write(tmp_path / "data"), tmp_path / "run"
    assert edge("train", data, *SHORT, "-o", out).code == 0
    for network, words in (
        ("channels", "`stem.weight` has shape (32, 2, 1, 1, 1), (32, 1, 1, 1, 1) is needed"),
        ("classes", "`out_0.conv_out.weight` has shape (32, 4, 1, 1, 1), (32, 3, 1, 1, 1) is needed"),
    ):
        shutil.copy(foreign[network] / LAST, out / LAST)
        done = edge("train", data, *SHORT, "-o", out, "--resume")
        assert (done.code, words in words_of(done)) == (1, True), done.err
        other = foreign[network].parent / {"channels": "a", "classes": "b"}[network]
        done = edge("train", other, *SHORT, "-o", out, "--resume")
        assert (done.code, "was started on other data (task." in words_of(done)) == (2, True), done.err


def damaged_run(name: str, out: Path) -> None:
    if name == "of nothing":
        torch.save({"weight": torch.ones(2)}, out / LAST)
    elif name == "of a list":
        torch.save([1], out / LAST)
    elif name == "of a later version":
        saved = torch.load(out / LAST, weights_only=True)
        torch.save({**saved, "counters": {**saved["counters"], "moons": 1}}, out / LAST)
    else:
        (out / name).write_text('{"step": ' if name == LOG else "[1")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("of nothing", "last.pt is no checkpoint of a run of this version; put the run's own back"),
        ("of a list", "last.pt is no checkpoint of a run of this version"),
        ("of a later version", "last.pt is no checkpoint of a run of this version"),
        (SUBJECT, "subject.json is damaged"),
        (PLAN, "plan.json is damaged"),
        (LOG, "log.jsonl is damaged; remove it to go on"),
    ],
)
def test_a_run_folder_that_was_damaged(edge: Cli, tmp_path: Path, name: str, words: str) -> None:
    data, out = write(tmp_path / "data"), tmp_path / "run"
    assert edge("train", data, *SHORT, "-o", out).code == 0
    damaged_run(name, out)
    done = edge("train", data, *SHORT, "-o", out, "--resume")
    assert (done.code, done.out) == (1, "")
    assert words in words_of(done)
    if name == LOG:
        (out / LOG).unlink()
        assert edge("train", data, *SHORT, "-o", out, "--resume").code == 0


def test_a_file_in_the_way(edge: Cli, dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for out in (file, file / "run"):
        done = edge("train", dataset, *SHORT, "-o", out)
        assert (done.code, f"{file} is a file; expected a folder for the run" in words_of(done)) == (2, True), done.err
    assert file.read_text() == "mine"
