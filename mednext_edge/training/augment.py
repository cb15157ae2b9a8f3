"""The augmentation set of nnU-Net ("moreDA") with MONAI's transforms, in nnU-Net's order and probabilities."""

from __future__ import annotations

import math
from typing import Any

from monai import transforms as mt

from mednext_edge.training.plan import TrainingPlan

KEYS = ("image", "label")


def augmentation(plan: TrainingPlan, *, foreground: bool) -> mt.Compose:
    """A random pipeline {image [C, *spatial], label [1, *spatial]} -> the same of spatial size `plan.patch`.

    Args:
        plan: patch, mirror axes, and whether to augment at all.
        foreground: centre the patch on a foreground voxel (if there is one), else anywhere.
    """
    # Rotation and scaling look outside the patch; cut a larger one first, so that its borders stay real.
    margin = tuple(math.ceil(n * 1.2) for n in plan.patch) if plan.augment else plan.patch
    # The image gets that margin too, or its outermost voxels would never be within the central patch.
    front = [m // 2 - n // 2 for m, n in zip(margin, plan.patch, strict=True)]
    border = [side for m, n, f in zip(margin, plan.patch, front, strict=True) for side in (f, m - n - f)]
    steps: list[Any] = [
        mt.SpatialPadd(KEYS, spatial_size=plan.patch, mode="constant"),
        mt.BorderPadd(KEYS, spatial_border=border, mode="constant"),
        mt.RandCropByPosNegLabeld(
            KEYS, label_key="label", spatial_size=margin, pos=int(foreground), neg=1 - int(foreground), num_samples=1
        )
        if foreground
        else mt.RandSpatialCropd(KEYS, roi_size=margin, random_size=False),
    ]
    if not plan.augment:
        return mt.Compose(steps)
    angle = math.radians(30)
    dims = len(plan.patch)
    spatial = {"mode": ("bilinear", "nearest"), "padding_mode": "zeros"}
    steps += [
        mt.RandAffined(KEYS, prob=0.2, rotate_range=[angle] * (dims if dims == 3 else 1), **spatial),
        # MONAI scales by 1 + x and samples the inverse: 1/1.4 .. 1/0.7 of the grid shows 0.7 .. 1.4 of the size.
        mt.RandAffined(KEYS, prob=0.2, scale_range=[(1 / 1.4 - 1, 1 / 0.7 - 1)] * dims, **spatial),
        mt.CenterSpatialCropd(KEYS, roi_size=plan.patch),
        mt.RandGaussianNoised("image", prob=0.1, std=0.3),
        mt.RandGaussianSmoothd("image", prob=0.1, sigma_x=(0.5, 1), sigma_y=(0.5, 1), sigma_z=(0.5, 1)),
        mt.RandScaleIntensityd("image", prob=0.15, factors=0.25),
        mt.RandScaleIntensityFixedMeand("image", prob=0.15, factors=0.25, preserve_range=True),
        mt.RandSimulateLowResolutiond(
            "image", prob=0.125, zoom_range=(0.5, 1.0), upsample_mode="trilinear" if dims == 3 else "bilinear"
        ),
        mt.RandAdjustContrastd("image", prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
        mt.RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
    ]
    steps += [mt.RandFlipd(KEYS, prob=0.5, spatial_axis=axis) for axis in plan.mirror_axes]
    return mt.Compose(steps)
