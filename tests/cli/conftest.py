"""The programs called in this process, and small things to call them with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from mednext_edge.checkpoints import save
from mednext_edge.cli.main import edge_app, export_app, run
from mednext_edge.models.loaded import LoadedModel


@dataclass(frozen=True)
class Done:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Done]


@pytest.fixture
def edge(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`mednext-edge` with these arguments."""
    monkeypatch.delenv("MEDNEXT_DEBUG", raising=False)

    def call(*args: object) -> Done:
        code = run(edge_app(), "mednext-edge", [str(a) for a in args])
        return Done(code, *capsys.readouterr())

    return call


@pytest.fixture
def mednext_export(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`mednext-export` with these arguments."""
    monkeypatch.delenv("MEDNEXT_DEBUG", raising=False)

    def call(*args: object) -> Done:
        code = run(export_app(), "mednext-export", [str(a) for a in args])
        return Done(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def checkpoint(tiny_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in our own format."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save(folder, tiny_model, dtype=torch.float32)
    return folder


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Path:
    """The tiny model for OpenVINO in FP32; read only."""
    return tiny_bundle


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cases of 18 x 20 x 22 voxels with three classes, in the Decathlon's layout."""
    folder = tmp_path_factory.mktemp("data")
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    rng = np.random.default_rng(0)
    names = [f"case{i}" for i in range(6)]
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir()
    for name in names:
        labels = np.zeros((18, 20, 22), np.uint8)
        labels[4:10, 5:12, 6:14], labels[10:14, 5:12, 6:14] = 1, 2
        image = labels * 50 + rng.normal(100, 5, labels.shape)
        nib.save(nib.Nifti1Image(image.astype(np.float32), affine), folder / "imagesTr" / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(labels, affine), folder / "labelsTr" / f"{name}.nii.gz")
    description = {
        "name": "small",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "one", "2": "two"},
        "numTraining": len(names),
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder
