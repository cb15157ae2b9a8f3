"""What goes back to the scanner: label images, or the images with the labels' outlines in them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mednext_edge.data.dicom_seg import RESEARCH
from mednext_edge.optional import require
from mednext_edge.registry import Registry
from mednext_edge.serving.mrd.volumes import MrdVolume
from mednext_edge.serving.mrd.wire import Wire

Labels = NDArray[np.generic]
Pixels = Callable[[MrdVolume, Labels], tuple[NDArray[np.uint16], dict[str, Any]]]
"""-> ([Z, Y, X] to send, the attributes that go with it)."""

ANSWERS: Registry[Pixels] = Registry("kind of answer")

# Grey values of an overlay; the outline has the highest.
_BRIGHTEST = 4095


def _labels(volume: MrdVolume, labels: Labels) -> tuple[NDArray[np.uint16], dict[str, Any]]:
    highest = max(1, int(labels.max()))
    return labels.astype(np.uint16), {
        "DataRole": "Segmentation",
        "WindowCenter": str(highest / 2),
        "WindowWidth": str(highest),
        "LUTFileName": "MicroDeltaHotMetal.pal",
    }


def _overlay(volume: MrdVolume, labels: Labels) -> tuple[NDArray[np.uint16], dict[str, Any]]:
    image, inside = volume.array[0].astype(np.float32), labels.astype(np.int32)
    low, high = float(image.min()), float(image.max())
    grey = ((image - low) * (_BRIGHTEST * 0.9 / max(high - low, 1e-6))).astype(np.uint16)
    edge = np.zeros(labels.shape, bool)
    for axis in (1, 2):  # outlines within the slice
        change = np.diff(inside, axis=axis) != 0
        before, after = [slice(None)] * 3, [slice(None)] * 3
        before[axis], after[axis] = slice(0, -1), slice(1, None)
        edge[tuple(before)] |= change
        edge[tuple(after)] |= change
    grey[edge & (inside > 0)] = _BRIGHTEST
    window = {"WindowCenter": str(_BRIGHTEST // 2), "WindowWidth": str(_BRIGHTEST)}
    return grey, {"DataRole": "Image", **window}


ANSWERS.add("labels", _labels)
ANSWERS.add("overlay", _overlay)


def send_answer(
    wire: Wire, kind: str, volume: MrdVolume, labels: Labels, names: Mapping[str, int], series: int
) -> None:
    """Send one image for each that came, with its geometry and attributes, as a series of its own.

    Args:
        wire: to whom.
        kind: of answer, from `ANSWERS`.
        volume, labels: what was segmented, and the result [Z, Y, X].
        names: label names to values.
        series: image_series_index of the answer.
    """
    pixels, attributes = ANSWERS[kind](volume, labels)
    attributes |= {
        "SequenceDescriptionAdditional": "mednext_seg" if kind == "labels" else "mednext_overlay",
        "ImageComments": RESEARCH,
        "SegmentLabels": [f"{value} {name}" for name, value in sorted(names.items(), key=lambda item: item[1])],
        "Keep_image_geometry": "1",
    }
    where = {place: z for z, place in enumerate(volume.places)}
    for number, image in enumerate(volume.images):
        planes = [pixels[where[number, z]] for z in range(image.data.shape[1])]
        header = copy.deepcopy(image.header)
        header.image_series_index = series
        header.image_type = 1  # magnitude
        meta = _attributes(image.attributes)
        meta.update(attributes)
        meta.append("ImageProcessingHistory", "MEDNEXT_EDGE")
        wire.send_image(header, meta.serialize(), np.stack(planes)[np.newaxis])


def _attributes(text: str) -> Any:
    """The client's attributes, to be given back with ours; those that are no attributes are left out.

    A document type could define entities that grow without bound, so there must be none.
    """
    kind = require("ismrmrd", "mrd").Meta
    if "<!" in text:
        return kind()
    try:
        return kind.deserialize(text)
    except Exception:  # malformed in any way; the images count, not their attributes
        return kind()
