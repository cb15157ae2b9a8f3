"""A data set whose labels are regions within each other, in nnU-Net v2's layout, and a network that reads them off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mednext_edge.runtime.session import Array, Session
from mednext_edge.task import Inference, ModelSpec, Normalization, Paint, Preprocessing, Region, Task

LABELS: dict[str, int | list[int]] = {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumour": 2}
ORDER = [1, 3, 2]
"""As in KiTS: what the second region leaves is not its number."""
VALUES = {"kidney": (1, 2, 3), "masses": (2, 3), "tumour": (2,)}
PAINTED = {"background": 0, "kidney": 1, "tumour": 2, "masses": 3}
REGIONS = tuple(Region(name=name, values=values) for name, values in VALUES.items())
PAINTS = (Paint(0, 1), Paint(1, 3), Paint(2, 2))
SHAPE = (36, 30, 26)
"""Voxels along NIfTI's x, y, z."""


def write_nested(folder: Path, cases: int = 4, **changes: Any) -> Path:
    """Balls in balls, brighter towards the middle."""
    rng = np.random.default_rng(0)
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"))
    for case in range(cases):
        centre = np.array([17, 15, 13]) + rng.integers(-2, 3, 3)
        distance = np.linalg.norm(grid - centre.reshape(3, 1, 1, 1), axis=0)
        labels = np.zeros(SHAPE, np.uint8)
        for radius, value in zip((11, 8, 5), ORDER, strict=True):
            labels[distance < radius] = value
        depth = np.select([distance < 5, distance < 8, distance < 11], [3, 2, 1], 0)
        image = (100 + 60 * depth + rng.normal(0, 8, SHAPE)).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "imagesTr" / f"case{case}_0000.nii.gz")
        nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / "labelsTr" / f"case{case}.nii.gz")
    description = {
        "name": "nested",
        "channel_names": {"0": "MRI"},
        "labels": LABELS,
        "regions_class_order": ORDER,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description | changes))
    return folder


class Bands(Session):
    """Each region begins at an intensity of its own: their logits are intensity - edge."""

    provider, precision, patch = "bands", "fp32", None

    def __init__(self, edges: tuple[float, ...] = (130, 190, 250), preprocessing: Preprocessing | None = None) -> None:
        self.edges = np.array(edges, np.float32).reshape(1, -1, 1, 1, 1)
        self.task = Task(
            name="bands",
            model=ModelSpec(
                family="mednext",
                variant="S",
                kernel_size=3,
                spatial_dims=3,
                in_channels=1,
                classes=3,
                parameters=1,
                config={},
            ),
            preprocessing=preprocessing or plain(),
            inference=Inference(patch=(16, 16, 16), mirror_axes=(0, 2), average="logits"),
            labels=PAINTED,
            regions=REGIONS,
        )

    def _run(self, x: Array) -> Array:
        logits: Array = x - self.edges
        return logits

    def close(self) -> None:
        self.edges = self.edges[:, :0]


def plain(**changes: Any) -> Preprocessing:
    """Intensities as they are."""
    return Preprocessing(crop_nonzero=False, normalization=(Normalization(scheme="none"),), **changes)
