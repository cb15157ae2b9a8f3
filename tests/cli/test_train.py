"""`mednext-edge train`: a run to the end, resuming, wrong requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mednext_edge.checkpoints import load
from mednext_edge.training.upkern import resample_kernel

from .conftest import Cli

SHORT = ["--epochs", 1, "--steps", 2, "--batch", 1, "--patch", 32, 16, 16, "--no-augment"]


def test_run_leaves_a_model_for_the_other_commands(edge: Cli, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = edge("train", dataset, *SHORT, "-o", out, "--seed", 7, "--json")
    assert done.code == 0, done.err
    assert done.json["plan"]["seed"] == 7
    assert set(done.json["best"]["dice_per_class"]) == {"one", "two"}
    model = load(out)
    assert model.task.inference.patch == (32, 16, 16)
    assert model.task.labels == {"background": 0, "one": 1, "two": 2}
    found = edge("inspect", out, "--json").json["provenance"]
    assert (found["last"]["step"], found["data"], found["plan"]["variant"]) == (2, str(dataset), "S")

    weights = (out / "weights.safetensors").read_bytes()
    finished = edge("train", dataset, *SHORT, "-o", out, "--seed", 7, "--resume", "--json")
    assert (finished.code, finished.json["last"]) == (0, done.json["last"])
    assert (out / "weights.safetensors").read_bytes() == weights

    # Patch and batch, planned anew, might be others: those of the run hold.
    bare = ["--epochs", 1, "--steps", 2, "--no-augment"]
    assert edge("train", dataset, *bare, "-o", out, "--seed", 7, "--resume").code == 0

    again = edge("train", dataset, *SHORT, "-o", out, "--seed", 7)
    assert again.code == 2
    assert "--resume" in again.err
    other = edge("train", dataset, *SHORT, "-o", out, "--seed", 8, "--resume")
    assert other.code == 2
    assert "seed" in other.err


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--variant", "XL"], 2, "Did you mean `L`"),
        (["--kernel", "4"], 2, "odd number"),
        (["--amp", "fp8"], 2, "Did you mean `fp"),
        (["--patch", "30", "16", "16"], 2, "multiple of 16"),
        (["--device", "gpu"], 2, "gpu"),
        (["--init", "/nowhere"], 1, "/nowhere"),
    ],
)
def test_wrong_requests_leave_nothing(
    edge: Cli, dataset: Path, tmp_path: Path, flags: list[str], code: int, words: str
) -> None:
    done = edge("train", dataset, *SHORT, "-o", tmp_path / "run", *flags)
    assert (done.code, done.out) == (code, "")
    assert words in done.err
    assert not (tmp_path / "run").exists()


def test_data_that_is_not_there(edge: Cli, tmp_path: Path) -> None:
    done = edge("train", tmp_path / "absent", "-o", tmp_path / "run")
    assert (done.code, done.out) == (1, "")
    assert "absent" in done.err
    assert not (tmp_path / "run").exists()


def test_upkern(edge: Cli, dataset: Path, tmp_path: Path) -> None:
    small, large = tmp_path / "k3", tmp_path / "k5"
    assert edge("train", dataset, *SHORT, "-o", small).code == 0
    done = edge("train", dataset, *SHORT, "-o", large, "--kernel", 5, "--upkern-from", small, "--lr", 1e-9, "--json")
    assert done.code == 0, done.err
    assert done.json["plan"]["start"].startswith("upkern:")
    k3, k5 = (load(folder).net.get_parameter("up_2.conv1.weight").detach() for folder in (small, large))
    assert k5.shape[2:] == (5, 5, 5)
    # Next to nothing was learnt, so that the kernels are the resampled ones.
    torch.testing.assert_close(k5, resample_kernel(k3, (5, 5, 5)), rtol=2e-3, atol=1e-4)
    resumed = edge("train", dataset, *SHORT, "-o", large, "--kernel", 5, "--lr", 1e-9, "--resume")
    assert resumed.code == 2
    assert "start" in resumed.err

    refused = edge("train", dataset, *SHORT, "-o", tmp_path / "b", "--variant", "B", "--upkern-from", small)
    assert refused.code == 1
    assert "`enc_block_1.0.conv2.weight`" in refused.err or "down_0.conv2.weight" in refused.err
    both = edge("train", dataset, *SHORT, "-o", tmp_path / "b", "--init", small, "--upkern-from", small)
    assert (both.code, "one of them" in both.err) == (2, True)
    assert not (tmp_path / "b").exists()


def test_trained_weights_leave_for_other_programs(edge: Cli, dataset: Path, tmp_path: Path) -> None:
    """MONAI's stock S takes them under its own keys; nnU-Net v2's folder is read back."""
    from monai.networks.nets.mednext import create_mednext

    run, monai, nnunet = tmp_path / "run", tmp_path / "monai", tmp_path / "nnunet"
    assert edge("train", dataset, *SHORT, "-o", run).code == 0
    for name, out in (("monai", monai), ("nnunet-v2", nnunet)):
        done = edge("convert", run, "--to", name, "-o", out)
        assert done.code == 0, done.err
    ours, again = load(run), load(nnunet)
    theirs = create_mednext("S", 3, in_channels=1, out_channels=3, kernel_size=3, deep_supervision=True).eval()
    (weights,) = [path for path in monai.rglob("*") if path.suffix in (".pt", ".pth")]
    theirs.load_state_dict(torch.load(weights, weights_only=True))
    x = torch.randn(1, 1, 32, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), ours.net(x), rtol=1e-4, atol=1e-4)
    assert again.task.labels == ours.task.labels
    assert again.task.preprocessing.normalization == ours.task.preprocessing.normalization
    for name, tensor in ours.net.state_dict().items():
        assert torch.equal(again.net.state_dict()[name], tensor)


def test_plan_only_shows_the_plan_and_writes_nothing(edge: Cli, dataset: Path, tmp_path: Path) -> None:
    done = edge("train", dataset, "-o", tmp_path / "run", "--plan-only", "--json", "--spacing", 1.5, 1, 1)
    assert done.code == 0, done.err
    assert done.json["plan"]["batch"] == 2
    assert done.json["task"]["preprocessing"]["spacing"] == [1.5, 1.0, 1.0]
    assert done.json["memory"]["estimated_bytes"] > 1e8
    assert "patch" in done.err and "GB" in done.err
    assert not (tmp_path / "run").exists()
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps([{"train": ["case0"], "val": ["case4", "case1", "case2"]}]))
    for flags, cases in (
        ([], "4 for training, 2 for validation"),
        (["--fold", 1], "5 for training, 1 for validation"),
        (["--fold", "all"], "6 for training, 0 for validation"),
        (["--fold", 0, "--splits", splits], "1 for training, 3 for validation"),
        (["--cross-validate", "--splits", splits], "1 for training, 3 for validation"),
    ):
        shown = edge("train", dataset, *SHORT, "-o", tmp_path / "run", "--plan-only", *flags)
        assert (shown.code, cases in shown.err) == (0, True), shown.err
    assert not (tmp_path / "run").exists()
    own = edge("train", dataset, "-o", tmp_path / "run", "--plan-only", "--json", "--patch", 512, 512, 512)
    assert own.json["task"]["preprocessing"]["spacing"] is None  # all images are on one grid
    assert "the memory may not do" in own.err


@pytest.mark.slow
def test_cross_validation(edge: Cli, dataset: Path, tmp_path: Path) -> None:
    out, splits = tmp_path / "run", tmp_path / "splits.json"
    names = [f"case{i}" for i in range(6)]
    splits.write_text(json.dumps([{"train": names[:3], "val": names[3:]}, {"train": names[3:], "val": names[:3]}]))
    command = ("train", dataset, *SHORT, "-o", out, "--cross-validate", "--splits", splits)
    done = edge(*command, "--json")
    assert done.code == 0, done.err
    assert (done.json["folds"], sorted(row["case"] for row in done.json["per_case"])) == (2, names)
    assert json.loads((out / "cross-validation.json").read_text()) == {
        name: done.json[name] for name in ("folds", "summary", "per_case")
    }
    low, high = done.json["summary"]["dice"]["one"]["ci95"]
    assert low <= done.json["summary"]["dice"]["one"]["mean"] <= high
    whole = load(out)
    assert whole.task.model.config["members"] == 2
    x = torch.randn(1, 1, 32, 16, 16)
    with torch.no_grad():
        parts = [load(out / f"fold_{k}").net(x).softmax(1) for k in (0, 1)]
        torch.testing.assert_close(whole.net(x).softmax(1), sum(parts) / 2, rtol=1e-3, atol=1e-5)
    # One fold alone is the same run.
    one = edge("train", dataset, *SHORT, "-o", out / "fold_1", "--fold", 1, "--splits", splits, "--resume", "--json")
    assert one.code == 0, one.err
    everything = edge("train", dataset, *SHORT, "-o", tmp_path / "all", "--fold", "all", "--json")
    assert (everything.code, everything.json["best"]) == (0, None)


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--fold", "9"], 1, "found fold 9; expected 0 to 4"),
        (["--fold", "first"], 2, "a number from 0 on, or all"),
        (["--fold", "0", "--cross-validate"], 2, "give one of them"),
        (["--splits", "/nowhere.json", "--fold", "0"], 1, "/nowhere.json"),
        (["--spacing", "wide"], 2, "sizes in mm"),
        (["--batch", "3", "--accumulate", "2"], 2, "cannot be cut"),
        (["--ema", "1"], 2, "EMA"),
        (["--keep", "first"], 2, "weights to keep"),
    ],
)
def test_more_wrong_requests(edge: Cli, dataset: Path, tmp_path: Path, flags: list[str], code: int, words: str) -> None:
    done = edge("train", dataset, "--epochs", 1, "--steps", 1, "--patch", 32, 16, 16, "-o", tmp_path / "run", *flags)
    assert (done.code, words in done.err) == (code, True), done.err
    assert not (tmp_path / "run").exists()
