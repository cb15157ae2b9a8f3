"""Small data sets with mistakes of one's choice, for `mednext-edge train`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from .conftest import Done

AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])
SHORT = ["--epochs", 1, "--steps", 1, "--batch", 1, "--patch", 32, 16, 16, "--no-augment"]
TWO = ["--epochs", 2, "--steps", 2, "--validate-every", 1, *SHORT[4:]]
Array = NDArray[Any]
HELD = "case3"
"""In fold 0 of six cases, which is held out."""
TRAINED = "case0"


def write(
    folder: Path,
    *,
    layout: str = "decathlon",
    cases: int = 6,
    only: str | None = None,
    image: Callable[[Array], Array | None] = lambda image: image,
    labels: Callable[[Array], Array | None] = lambda labels: labels,
    labels_affine: Array = AFFINE,
    channels: tuple[str, ...] = ("MRI",),
    names: tuple[str, ...] = ("background", "one", "two"),
) -> Path:
    """A data set of 18 x 20 x 22 voxels; `only` this case, or all, with another image or labels."""
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    rng = np.random.default_rng(0)
    suffix = "_0000" if layout == "nnunet" else ""
    for number in range(cases):
        name = f"case{number}"
        voxels = np.zeros((18, 20, 22), np.uint8)
        voxels[4:10, 5:12, 6:14], voxels[10:14, 5:12, 6:14] = 1, 2
        changed = only in (None, name)
        picture: Array = (voxels * 50 + rng.normal(100, 5, voxels.shape)).astype(np.float32)
        for sub, array, affine in (
            (f"imagesTr/{name}{suffix}", image(picture) if changed else picture, AFFINE),
            (f"labelsTr/{name}", labels(voxels) if changed else voxels, labels_affine if changed else AFFINE),
        ):
            if array is not None:
                nib.save(nib.Nifti1Image(array, affine), folder / f"{sub}.nii.gz")
    numbered = {str(i): channel for i, channel in enumerate(channels)}
    content: dict[str, Any] = {"labels": {name: value for value, name in enumerate(names)}, "file_ending": ".nii.gz"}
    content["channel_names" if layout == "nnunet" else "modality"] = numbered
    if layout == "decathlon":
        content["training"] = [
            {"image": f"./imagesTr/case{i}.nii.gz", "label": f"./labelsTr/case{i}.nii.gz"} for i in range(cases)
        ]
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def voxel(value: float) -> Callable[[Array], Array]:
    """A change of one voxel, of the foreground."""

    def change(array: Array) -> Array:
        array = array.copy()
        array[6, 7, 8] = value
        return array

    return change


def nothing(array: Array) -> None:
    return None


def words_of(done: Done) -> str:
    return " ".join(done.err.split())
