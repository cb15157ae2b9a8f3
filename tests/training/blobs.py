"""Images of two bright blobs, as NIfTI files with a dataset.json, and a network of two levels for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn

from mednext_edge.data.dataset import Dataset
from mednext_edge.models.config import MedNeXtConfig
from mednext_edge.models.families import describe_mednext
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.task import Inference, Normalization, Preprocessing, Task
from mednext_edge.training.plan import TrainingPlan
from mednext_edge.training.start import start_network

SHAPE = (36, 30, 26)
"""Voxels along NIfTI's x, y, z."""


def write_blobs(folder: Path, cases: int = 3) -> Path:
    """A data set in the Decathlon's layout: background, `one`, `two`."""
    rng = np.random.default_rng(0)
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"))
    for case in range(cases):
        labels = np.zeros(SHAPE, np.uint8)
        for value in (1, 2):
            centre = np.array([12, 15, 13]) + np.array([12, 0, 0]) * (value - 1) + rng.integers(-2, 3, 3)
            labels[((grid - centre.reshape(3, 1, 1, 1)) ** 2).sum(0) < 25] = value
        image = (100 + 60 * labels + rng.normal(0, 8, SHAPE)).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "imagesTr" / f"case{case}.nii.gz")
        nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / "labelsTr" / f"case{case}.nii.gz")
    description = {
        "name": "blobs",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "one", "2": "two"},
        "training": [
            {"image": f"./imagesTr/case{i}.nii.gz", "label": f"./labelsTr/case{i}.nii.gz"} for i in range(cases)
        ],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def plan(**changes: Any) -> TrainingPlan:
    """Two epochs of two steps on small patches, in FP32."""
    small: dict[str, Any] = {"patch": (16, 16, 32), "epochs": 2, "steps": 2, "validate_every": 1, "amp": "fp32"}
    return TrainingPlan(**{**small, "seed": 3, **changes})


def task_for(dataset: Dataset, **changes: Any) -> Task:
    """A task whose network has two levels and deep supervision."""
    small: dict[str, Any] = {
        "classes": len(dataset.labels),
        "channels": 4,
        "blocks": (1,) * 5,
        "expansion": (2,) * 5,
        "down_expansion": (2,) * 2,
        "down_grn": (False,) * 2,
        "deep_supervision": True,
    }
    config = MedNeXtConfig(**small | changes)
    names = {"background": 0} | {f"class-{i}": i for i in range(1, config.classes)}
    return Task(
        name="blobs",
        model=describe_mednext(MedNeXt(config)),
        preprocessing=Preprocessing(normalization=(Normalization(),) * config.in_channels),
        inference=Inference(patch=(16, 16, 32)[-config.spatial_dims :]),
        labels=dataset.labels if config.classes == len(dataset.labels) else names,
    )


def precise_network(task: Task, seed: int) -> nn.Module:
    """A network that computes in float64 between float32 images and float32 logits.

    What differs between two orders of the same sums is then far below what differs between two recipes.
    """
    net = start_network(task, seed).double()
    net.register_forward_pre_hook(lambda _, args: tuple(x.double() for x in args))
    net.register_forward_hook(lambda _, args, out: [x.float() for x in out] if isinstance(out, list) else out.float())
    return net


def weights(model: LoadedModel) -> dict[str, Tensor]:
    return dict(model.net.state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
