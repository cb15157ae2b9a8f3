"""An engine whose output is known: it reads the label off the intensity."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from mednext_edge.data.dataset import Case
from mednext_edge.data.volume import Volume
from mednext_edge.runtime.session import Array, Session
from mednext_edge.task import Inference, ModelSpec, Normalization, Preprocessing, Task

LABELS = {"background": 0, "one": 1, "two": 2}


def task(labels: Mapping[str, int] = LABELS, channels: int = 1) -> Task:
    model = ModelSpec(
        family="mednext",
        variant="S",
        kernel_size=3,
        spatial_dims=3,
        in_channels=channels,
        classes=len(labels),
        parameters=1,
        config={},
    )
    plain = Preprocessing(crop_nonzero=False, normalization=(Normalization(scheme="none"),) * channels)
    return Task(
        name="read", model=model, preprocessing=plain, inference=Inference(patch=(8, 8, 8)), labels=dict(labels)
    )


class ReadSession(Session):
    """Labels are the rounded intensities, after `change`."""

    def __init__(
        self,
        change: Callable[[Array], NDArray[np.floating]] = lambda x: x,
        labels: Mapping[str, int] = LABELS,
        precision: str = "fp32",
    ) -> None:
        self.task = task(labels)
        self.provider = "reader 1.0"
        self.precision = precision
        self.patch = None
        self.change = change
        self.seen: list[Array] = []

    def _run(self, x: Array) -> Array:
        self.seen.append(x.copy())
        classes = np.arange(self.task.model.classes).reshape(1, -1, 1, 1, 1)
        found: Array = (30.0 * (np.rint(self.change(x)) == classes)).astype(np.float32)
        return found

    def close(self) -> None:
        self.seen.clear()


def case(name: str, reference: NDArray[np.integer], *, labelled: bool = True, spacing: float = 1.0) -> Case:
    """A case whose image is its reference."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    image = Volume(reference[None].astype(np.float32), affine)
    labels = Volume(reference.astype(np.uint8), affine)
    return Case(name, lambda: image, (lambda: labels) if labelled else None)


def block(start: int = 2, value: int = 1) -> NDArray[np.uint8]:
    """12x10x9 voxels with a 4x4x4 cube of `value`, and one of 2 beside it."""
    found = np.zeros((12, 10, 9), np.uint8)
    found[start : start + 4, 1:5, 1:5] = value
    found[start : start + 4, 5:9, 1:5] = 2
    return found
