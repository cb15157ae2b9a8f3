"""Segment or classify one image with an open engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mednext_edge.data.raster import is_raster, read_raster
from mednext_edge.data.volume import Volume, read_image
from mednext_edge.runtime.predictor import Predictor
from mednext_edge.runtime.session import Session


def predict(
    session: Session,
    image: str | Path | Volume,
    *,
    step: float | None = None,
    mirror: bool = False,
) -> NDArray[np.generic]:
    """Labels of one image, [Z, Y, X] on the image's own grid; or the probabilities of its classes, [labels].

    Args:
        session: an open engine.
        image: a NIfTI file, a raster image, or a volume in memory (several channels, several files:
            `data.read_image`).
        step: distance of the patches as a fraction of their size; None takes the task's.
        mirror: average over flips along the task's mirror axes.

    Raises:
        DataError: the image cannot be read, or does not fit the task.
        ExportError: the engine returned NaN or infinite values.
    """
    if not isinstance(image, Volume):
        image = read_raster(image) if is_raster(Path(image)) else read_image(image)
    predictor = Predictor(session, step=step, mirror=mirror)
    return predictor.predict(image) if session.task.model.kind == "segmentation" else predictor.classify(image)
