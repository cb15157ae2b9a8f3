"""What is to be trained, planned from the data: preprocessing, network and labels."""

from __future__ import annotations

import math
from collections import Counter
from typing import Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from mednext_edge.data.dataset import Dataset
from mednext_edge.data.recipe import prepare
from mednext_edge.models.families import Request, plan_spec
from mednext_edge.task import Inference, Normalization, Preprocessing, Task
from mednext_edge.training.fingerprint import ForegroundIntensities, choose_spacing
from mednext_edge.training.plan import TrainingPlan

# nnU-Net's rule: images that shrink to less than this when cropped to what is not zero have been masked by somebody,
# and the share of zeros must not move their mean.
MASKED_BELOW = 0.75
LOOKED_AT = 25
IMAGENET = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))
IMAGENET_GREY = ((0.449, 0.226),)
"""Mean and standard deviation of red, green and blue in 0..1, and of their means."""


def plan_preprocessing(
    dataset: Dataset, *, masked: bool | None = None, spacing: tuple[float, ...] | Literal["plan", "own"] = "plan"
) -> Preprocessing:
    """The preprocessing by nnU-Net's rules, from at most 25 of the data set's images.

    Images are turned to the orientation that most of the training images have, so that one stored the other way
    round looks to the network as those do. CT (by the channel's name) is clipped and normalised with the statistics
    of the foreground; everything else is z-scored image by image, over the non-zero voxels alone where the images are
    masked.

    Args:
        dataset: images, and labels where a channel is CT.
        masked: whether the z-score looks at the non-zero voxels alone; None decides by nnU-Net's rule.
        spacing: voxel size in mm (z, y, x) after turning; `own` leaves every image's as it is, `plan` takes nnU-Net's
            choice where the images differ (`training.fingerprint`).

    Raises:
        DataError: an image cannot be read.
    """
    plain = Preprocessing(normalization=(Normalization(scheme="zscore"),) * len(dataset.channels))
    ct = {c: ForegroundIntensities() for c, name in enumerate(dataset.channels) if name.lower() == "ct"}
    kept, affines, shapes = [], [], []
    for case in dataset.training[:: max(1, len(dataset.training) // LOOKED_AT)][:LOOKED_AT]:
        with case.named("training"):
            image = case.image()
            affines.append(image.affine)
            shapes.append(image.spatial)
            kept.append(math.prod(prepare(image, plain).image.shape[1:]) / math.prod(image.spatial))
            for channel, intensities in ct.items():
                if case.labels is not None and (labels := case.labels().array).shape == image.spatial:
                    intensities.add(image.array[channel], labels)
    if masked is None:
        masked = bool(kept) and sorted(kept)[len(kept) // 2] < MASKED_BELOW
    codes = Counter("".join(nib.aff2axcodes(affine)) for affine in affines)
    orientation = codes.most_common(1)[0][0] if codes else None
    zscore = Normalization(scheme="zscore", masked=masked)
    if spacing == "plan":
        turned = [_turned(affine, shape, orientation) for affine, shape in zip(affines, shapes, strict=True)]
        target = choose_spacing(*zip(*turned, strict=True)) if turned else None
    else:
        target = None if spacing == "own" else tuple(spacing)
    return Preprocessing(
        orientation=orientation,
        normalization=tuple(
            (ct[c].normalization() if c in ct else None) or zscore for c in range(len(dataset.channels))
        ),
        spacing=target,
    )


def _turned(
    affine: NDArray[np.float64], shape: tuple[int, ...], orientation: str | None
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Spacing in mm and shape, (z, y, x), once an image is turned."""
    own = nib.orientations.io_orientation(affine)
    wanted = own if orientation is None else nib.orientations.axcodes2ornt(tuple(orientation))
    turn = nib.orientations.ornt_transform(own, wanted)
    sizes = np.sqrt((affine[:3, :3] ** 2).sum(0))
    spacing, voxels = [0.0] * 3, [0] * 3
    for axis in range(3):
        spacing[2 - int(turn[axis, 0])] = float(sizes[axis])
        voxels[2 - int(turn[axis, 0])] = shape[2 - axis]
    return tuple(spacing), tuple(voxels)


def plan_photographs(dataset: Dataset, size: tuple[int, int] | None) -> Preprocessing:
    """Fixed brightness, so that a dark image stays dark: ImageNet's mean and standard deviation of each colour.

    Args:
        dataset: of raster images.
        size: (y, x) that every image is stretched to; None keeps its own, for a sliding window.
    """
    entries = IMAGENET_GREY if dataset.colour == "grey" else IMAGENET
    # The scheme `ct` with nothing to clip is (x - mean) / sd.
    normalization = tuple(Normalization(scheme="ct", mean=255 * mean, sd=255 * sd) for mean, sd in entries)
    return Preprocessing(
        colour=dataset.colour,
        crop_nonzero=False,
        normalization=normalization,
        size=size,
        image_order=1,
        label_order=0,
    )


def make_task(dataset: Dataset, plan: TrainingPlan, preprocessing: Preprocessing) -> Task:
    """The task of a network trained on this dataset with this plan.

    Raises:
        UnknownNameError, UsageError: the plan's family has no such network.
    """
    request = Request(
        kind=dataset.kind,
        variant=plan.variant,
        in_channels=len(preprocessing.normalization),
        labels=len(dataset.regions) or len(dataset.labels),
        spatial_dims=len(plan.patch),
        kernel=plan.kernel,
        grn=plan.grn,
        regions=bool(dataset.regions),
    )
    return Task(
        name=dataset.name,
        model=plan_spec(plan.family, request),
        preprocessing=preprocessing,
        inference=Inference(
            patch=plan.patch, mirror_axes=plan.mirror_axes, average="logits" if dataset.regions else "softmax"
        ),
        labels=dataset.labels,
        regions=dataset.regions,
    )
