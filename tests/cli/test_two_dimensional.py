"""2-D networks through the same commands: trained, exported, validated, and asked for masks and classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mednext_edge.cli.predict import FORMATS
from mednext_edge.cli.train import NETWORKS
from mednext_edge.data.outputs import OUTPUTS
from mednext_edge.models.families import FAMILIES
from tests.data.pictures import mask, picture

from .conftest import Cli

SHORT = ["--epochs", 1, "--steps", 1, "--batch", 2, "--no-augment", "--amp", "fp32"]


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lesions")
    for i in range(4):
        picture(folder / "images" / f"frame {i}.png", seed=i, size=(40, 48))
        mask(folder / "masks" / f"frame {i}_mask.png", slice(4 * i, 4 * i + 20), size=(40, 48))
    return folder


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    for name in ("benign", "malignant"):
        for i in range(3):
            picture(folder / name / f"{name} {i}.png", seed=len(name) + i, size=(70, 50), mode="L")
    return folder


def test_help_texts_name_what_is_registered() -> None:
    assert set(NETWORKS) == {name for name, family in FAMILIES.items() if family.plan is not None}
    assert tuple(OUTPUTS) == FORMATS


def test_masks_from_raster_images(edge: Cli, lesions: Path, tmp_path: Path) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    done = edge("train", lesions, "--network", "cmunext", "--patch", 32, 32, *SHORT, "-o", run, "--json")
    assert done.code == 0, done.err
    assert (done.json["task"]["model"]["family"], done.json["task"]["model"]["classes"]) == ("cmunext", 1)
    assert "stretched to 32 x 32" in edge("inspect", run).err
    args = [
        "--target",
        "openvino",
        "--int8",
        "--calib",
        lesions,
        "--calib-samples",
        2,
        "--max-drop",
        1,
        "--out",
        bundle,
    ]
    done = edge("export", run, *args, "--metric", "iou", "--json")
    assert done.json["report"]["layers"]["counts_by_precision"] == {"int8": 38}  # every convolution
    assert done.json["gate"]["metric"] == "iou"
    found = edge("validate", bundle, "--data", lesions, "--baseline", run, "--max-drop", 1, "--json").json["report"]
    assert set(found["accuracy"]["exported"]) >= {"dice_mean", "iou_mean", "nsd_mean"}
    assert found["accuracy"]["voxel_agreement"] > 0.5
    assert edge("predict", bundle, "-i", lesions / "images", "-o", tmp_path / "out", "--disable_tta").code == 0
    for i in range(4):
        labels = np.asarray(Image.open(tmp_path / "out" / f"frame {i}.png"))
        assert labels.shape == (40, 48)
        assert set(np.unique(labels)) <= {0, 1}


def test_classes_of_images(edge: Cli, kinds: Path, tmp_path: Path) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    done = edge("train", kinds, "--network", "mednext2d", "--patch", 64, 64, *SHORT, "-o", run, "--json")
    assert done.code == 0, done.err
    assert set(done.json["last"]["sensitivity_per_class"]) == {"benign", "malignant"}
    edge("export", run, "--target", "onnx", "--precision", "fp16", "--out", bundle, "--max-drop", 1)
    found = edge("validate", bundle, "--data", kinds, "--baseline", run, "--max-drop", 1, "--json").json
    assert found["gate"]["metric"] == "accuracy"
    assert found["report"]["classification"]["agreement"] == 1
    assert edge("predict", bundle, "-i", kinds / "benign", "-o", tmp_path / "out", "--disable_tta").code == 0
    table = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    assert table[0] == "case,class,p(benign),p(malignant)"
    assert [line.split(",")[0] for line in table[1:]] == ["benign 0", "benign 1", "benign 2"]
    again = edge(
        "predict", bundle, "-i", kinds / "malignant", "-o", tmp_path / "out", "--continue_prediction", "--json"
    ).json
    assert len(again["cases"]) == 3
    assert set(again["cases"][0]["probabilities"]) == {"benign", "malignant"}
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 7


def test_requests_that_contradict_the_network(edge: Cli, lesions: Path, kinds: Path, tmp_path: Path) -> None:
    for args, code, message in (
        ([lesions, "--network", "cmunext", "--kernel", 5], 2, "kernel 5"),
        ([kinds, "--network", "cmunext"], 2, "kind classification"),
        ([lesions, "--network", "mednext2d", "--patch", 32, 32, 32], 2, "expected two"),
        ([lesions, "--network", "cmunexd"], 2, "Did you mean `cmunext`"),
    ):
        done = edge("train", *args, *SHORT, "-o", tmp_path / "run")
        assert (done.code, message in done.err) == (code, True), done.err
    assert not (tmp_path / "run").exists()
