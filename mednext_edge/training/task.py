"""What is to be trained, planned from the data: preprocessing, network and labels."""

from __future__ import annotations

import math
from collections import Counter

import nibabel as nib
import torch

from mednext_edge.data.dataset import Dataset
from mednext_edge.data.recipe import prepare
from mednext_edge.models.config import mednext_config
from mednext_edge.models.families import describe_mednext
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.task import Inference, Normalization, Preprocessing, Task
from mednext_edge.training.plan import TrainingPlan

# nnU-Net's rule: images that shrink to less than this when cropped to what is not zero have been masked by somebody,
# and the share of zeros must not move their mean.
MASKED_BELOW = 0.75
LOOKED_AT = 25


def plan_preprocessing(dataset: Dataset, *, masked: bool | None = None) -> Preprocessing:
    """Per-case z-score on the stored grid, over the non-zero voxels alone where the images are masked.

    Images are turned to the orientation that most of the training images have, so that one stored the other way
    round looks to the network as those do.

    Args:
        dataset: up to 25 of its training images are read.
        masked: whether the z-score looks at the non-zero voxels alone; None decides by nnU-Net's rule.

    Raises:
        DataError: an image cannot be read.
    """
    plain = Preprocessing(normalization=(Normalization(scheme="zscore"),) * len(dataset.channels))
    kept, orientations = [], Counter[str]()
    for case in dataset.training[:: max(1, len(dataset.training) // LOOKED_AT)][:LOOKED_AT]:
        image = case.image()
        orientations["".join(nib.aff2axcodes(image.affine))] += 1
        kept.append(math.prod(prepare(image, plain).image.shape[1:]) / math.prod(image.spatial))
    if masked is None:
        masked = bool(kept) and sorted(kept)[len(kept) // 2] < MASKED_BELOW
    return Preprocessing(
        orientation=orientations.most_common(1)[0][0] if orientations else None,
        normalization=(Normalization(scheme="zscore", masked=masked),) * len(dataset.channels),
    )


def make_task(dataset: Dataset, plan: TrainingPlan, preprocessing: Preprocessing) -> Task:
    """The task of a network trained on this dataset with this plan."""
    config = mednext_config(
        plan.variant,
        in_channels=len(dataset.channels),
        classes=len(dataset.labels),
        kernel=plan.kernel,
        spatial_dims=len(plan.patch),
        grn=plan.grn,
        deep_supervision=True,
    )
    with torch.device("meta"):
        spec = describe_mednext(MedNeXt(config))
    return Task(
        name=dataset.name,
        model=spec,
        preprocessing=preprocessing,
        inference=Inference(patch=plan.patch, mirror_axes=plan.mirror_axes),
        labels=dataset.labels,
    )
