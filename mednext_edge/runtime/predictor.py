"""nnU-Net's sliding window: a whole image through an engine that takes one patch at a time.

Patches overlap; a Gaussian weights the middle of each over its border, where the network has seen less
context. (F. Isensee et al., "nnU-Net", Nature Methods 18, 2021, online methods, "Inference".)
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mednext_edge.data.recipe import prepare, restore
from mednext_edge.data.volume import Volume
from mednext_edge.errors import DataError, ExportError, UsageError
from mednext_edge.models.logits import per_class
from mednext_edge.runtime.session import Session

Array = NDArray[np.float32]
# nnU-Net's width of the weighting, as a fraction of the patch, and scipy's cut-off in standard deviations.
_SIGMA = 1 / 8
_TRUNCATE = 4.0


def window_starts(size: tuple[int, ...], patch: tuple[int, ...], step: float) -> tuple[list[int], ...]:
    """First index of every patch along each axis: evenly spaced, at most `step` patches apart, ends covered.

    Args:
        size: of the image, at least the patch along every axis.
        patch: of the network.
        step: largest distance as a fraction of the patch, 0 < step <= 1.
    """
    starts = []
    for length, window in zip(size, patch, strict=True):
        count = math.ceil((length - window) / (window * step)) + 1
        distance = (length - window) / (count - 1) if count > 1 else 0.0
        starts.append([round(distance * i) for i in range(count)])
    return tuple(starts)


def gaussian_map(patch: tuple[int, ...]) -> Array:
    """Weight of every voxel of a patch, 1 in the middle, positive everywhere; [*patch] float32.

    A Gaussian of sigma patch/8 that scipy's filter would make of a unit impulse at patch//2: cut off at four
    sigma, with the smallest weight in place of the zeros beyond.
    """
    lines = []
    for n in patch:
        sigma = n * _SIGMA
        distance = np.abs(np.arange(n) - n // 2)
        line = np.exp(-0.5 * (distance / sigma) ** 2)
        line[distance > int(_TRUNCATE * sigma + 0.5)] = 0
        lines.append(line)
    weights: Array = functools.reduce(np.multiply.outer, lines).astype(np.float32)
    weights[weights == 0] = weights[weights > 0].min()
    return weights


@dataclass(frozen=True)
class Predictor:
    """Segments or classifies images of any size with one session.

    Attributes:
        session: the engine.
        step: distance of the patches as a fraction of their size, 0 < step <= 1; None takes the task's.
        mirror: also predict every combination of flips along the task's mirror axes, and average.
        progress: called as (patches done, patches in all).

    Raises:
        UsageError: a step out of range.
    """

    session: Session
    step: float | None = None
    mirror: bool = False
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        if self.step is not None and not 0 < self.step <= 1:
            raise UsageError(f"found a step of {self.step}; expected a fraction of the patch, 0 < step <= 1")

    @property
    def patch(self) -> tuple[int, ...]:
        """Spatial size of what the engine is given: the one it was built for, or else the task's."""
        return self.session.patch or self.session.task.inference.patch

    def predict(self, volume: Volume) -> NDArray[np.generic]:
        """Labels of an image, [Z, Y, X] on the image's own grid.

        Raises:
            DataError: the image does not fit the task, or the network classifies whole images.
            ExportError: the engine returned NaN or infinite values.
        """
        model = self.session.task.model
        if model.kind != "segmentation":
            raise DataError(f"{model.family} {model.variant} classifies images; expected a network for segmentation")
        prepared = prepare(volume, self.session.task.preprocessing)
        # Whatever was averaged is what nnU-Net resamples: softmax in v1, logits in v2.
        return restore(self._scores(prepared.image), prepared, self.session.task.paints)

    def classify(self, volume: Volume) -> Array:
        """Probabilities of the classes of a whole image, [labels] float32: the mean over all windows and slices.

        Raises:
            DataError: the image does not fit the task, or the network answers with label maps.
            ExportError: the engine returned NaN or infinite values.
        """
        model = self.session.task.model
        if model.kind != "classification":
            raise DataError(f"{model.family} {model.variant} makes label maps; expected a network for classification")
        found = self.probabilities(prepare(volume, self.session.task.preprocessing).image)
        mean: Array = found.mean(axis=tuple(range(1, found.ndim)))
        return mean

    def probabilities(self, image: Array) -> Array:
        """Class probabilities of a prepared image.

        Args:
            image: [C, *spatial] float32; for a 2-D network also a stack of slices [C, Z, Y, X].

        Returns:
            [classes, *spatial] float32, summing to 1 over the classes; of regions each by itself. Of a classification
            every window's answer stands for all its pixels.

        Raises:
            DataError: the image does not fit the network.
            ExportError: the engine returned NaN or infinite values.
        """
        scores = self._scores(image)
        logits = torch.from_numpy(scores)
        if self.session.task.regions:
            logits.sigmoid_()
        elif self.session.task.inference.average == "logits":
            logits.sub_(logits.amax(dim=0)).exp_()
            logits.div_(logits.sum(dim=0))
        return scores

    def _scores(self, image: Array) -> Array:
        """Averaged softmax or logits, as the task says: [classes or regions, *spatial]."""
        model = self.session.task.model
        stack = model.spatial_dims == 2 and image.ndim == 4
        if not stack and image.ndim != model.spatial_dims + 1:
            raise DataError(
                f"found an image of shape {image.shape}; expected [channels, {model.spatial_dims} spatial axes], "
                f"since {model.family} {model.variant} is a {model.spatial_dims}-D network here"
            )
        if len(image) != model.in_channels:
            raise DataError(f"found an image of {len(image)} channels; expected {model.in_channels}")
        if not stack:
            return self._slide(image, 0, 1)
        scores = np.empty((self.session.task.score_channels, *image.shape[1:]), np.float32)
        for z in range(image.shape[1]):
            scores[:, z] = self._slide(image[:, z], z, image.shape[1])
        return scores

    def _slide(self, image: Array, position: int, images: int) -> Array:
        """The average over all windows of [C, *spatial], the `position`-th of `images` of this shape."""
        inference = self.session.task.inference
        image, inside = _pad(image, self.patch)
        starts = window_starts(image.shape[1:], self.patch, self.step or inference.step)
        windows = list(itertools.product(*starts))
        axes = inference.mirror_axes if self.mirror else ()
        flips = [tuple(a + 1 for a in some) for n in range(len(axes) + 1) for some in itertools.combinations(axes, n)]
        weights = torch.from_numpy(gaussian_map(self.patch)) if len(windows) > 1 else torch.ones(self.patch)
        scores = torch.zeros((self.session.task.score_channels, *image.shape[1:]))
        total = torch.zeros(image.shape[1:])
        for done, start in enumerate(windows, 1):
            window = tuple(slice(s, s + n) for s, n in zip(start, self.patch, strict=True))
            patch = image[(slice(None), *window)]
            for flip in flips:
                scores[(slice(None), *window)].addcmul_(self._run(patch, flip), weights)
            total[window].add_(weights, alpha=len(flips))
            if self.progress is not None:
                self.progress(position * len(windows) + done, images * len(windows))
        return scores.div_(total).numpy()[(slice(None), *inside)]

    def _run(self, patch: Array, flip: tuple[int, ...]) -> torch.Tensor:
        """[C, *patch], flipped on the way in and back on the way out -> softmax or logits [classes, *patch]."""
        task = self.session.task
        # A copy, because engines do not take the negative strides of a flipped axis.
        found = self.session.run(np.array(np.flip(patch, flip)[np.newaxis], np.float32, order="C"))
        expected = (1, *task.model.output_shape(self.patch))
        if found.shape != expected:
            raise ExportError(f"{self.session.provider} returned logits of shape {found.shape}; expected {expected}")
        logits = torch.from_numpy(np.require(found[0], np.float32, "W"))
        if not task.regions:
            logits = per_class(logits, axis=0)
        low, high = torch.aminmax(logits)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise ExportError(
                f"{self.session.provider} at {self.session.precision} returned NaN or infinite logits; the usual cause "
                "is overflow in fp16. Export again at fp32 or bf16, or keep the layers that overflow in fp32"
            )
        if task.model.kind == "classification":
            logits = logits.view(-1, *(1 for _ in self.patch))
        scores = torch.softmax(logits, dim=0) if task.inference.average == "softmax" else logits
        return scores.flip(flip) if flip else scores


def _pad(image: Array, patch: tuple[int, ...]) -> tuple[Array, tuple[slice, ...]]:
    """[C, *spatial] with zeros around it up to the patch, and where in the result the image lies."""
    missing = [max(0, n - size) for n, size in zip(patch, image.shape[1:], strict=True)]
    inside = tuple(slice(m // 2, m // 2 + size) for m, size in zip(missing, image.shape[1:], strict=True))
    if any(missing):
        image = np.pad(image, [(0, 0), *((m // 2, m - m // 2) for m in missing)])
    return image, inside
