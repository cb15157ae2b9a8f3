"""`demo:brain-tissue`: grey and white matter in the MNI152 brain, out of the nilearn package.

Image: the ICBM 152 nonlinear symmetric 2009a template, T1-weighted, 1 mm, 197 x 233 x 189 voxels, as nilearn
ships it: skull-stripped, and scaled to 0..1 on loading. Labels: a voxel is grey or white matter, whichever
probability map is larger, where that probability exceeds what the two leave over (1 - grey - white).

The template is left-right symmetric, so that its hemispheres are mirror copies; the fair split is into the
posterior half, for training, and the anterior half, for validation.

Source: V. Fonov, A. Evans, K. Botteron, C. Almli, R. McKinstry, D. Collins, "Unbiased average age-appropriate
atlases for pediatric studies", NeuroImage 54 (2011). Licence: nilearn states none of its own for these files;
the template is distributed with the notice "Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging
Centre, Montreal Neurological Institute, McGill University", which permits to use, copy, modify and distribute
it for any purpose and without fee wherever the notice goes along, and comes without warranty.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mednext_edge.data.dataset import Case, Dataset
from mednext_edge.data.volume import Volume

LABELS = {"background": 0, "grey-matter": 1, "white-matter": 2}


def brain_tissue() -> Dataset:
    """The data set; nilearn's files are read when a case is asked for its voxels."""
    posterior, anterior = (
        Case(name, partial(_half, _image, anterior=front), partial(_half, _labels, anterior=front))
        for name, front in (("posterior", False), ("anterior", True))
    )
    return Dataset("brain-tissue", (posterior,), (anterior,), dict(LABELS), ("T1",))


def _image() -> Volume:
    from nilearn.datasets import load_mni152_template

    voxels, affine = _load(load_mni152_template)
    return Volume(np.ascontiguousarray(voxels.T)[np.newaxis], affine)


def _labels() -> Volume:
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

    grey, affine = _load(load_mni152_gm_template)
    white, _ = _load(load_mni152_wm_template)
    tissue = np.where(grey >= white, LABELS["grey-matter"], LABELS["white-matter"])
    present = np.maximum(grey, white) > 1 - grey - white
    return Volume(np.ascontiguousarray((tissue * present).T.astype(np.uint8)), affine)


def _load(template: Callable[..., Any]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    image = template(resolution=1)
    return np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine, dtype=np.float64)


def _half(whole: Callable[[], Volume], *, anterior: bool) -> Volume:
    """One half along y. In RAS millimetres y grows to the front, so the first rows are posterior if d(mm)/d(j) > 0."""
    volume = whole()
    rows = volume.spatial[1]
    middle = rows // 2
    upper = anterior == (volume.affine[1, 1] > 0)
    start, stop = (middle, rows) if upper else (0, middle)
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 1] * start
    return Volume(np.ascontiguousarray(volume.array[..., start:stop, :]), affine)
