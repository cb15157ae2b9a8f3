"""MRD streams as the ismrmrd package writes them."""

from __future__ import annotations

import io
from typing import Any

import ismrmrd
import numpy as np
from ismrmrd.serialization import ConfigFile, ProtocolDeserializer, ProtocolSerializer
from numpy.typing import NDArray


def images(voxels: NDArray[Any], *, slabs: bool = False, **header: Any) -> list[ismrmrd.Image]:
    """[Z, Y, X] as 2-D slices (or one 3-D image) of 1.5 x 1 x 2 mm, oblique."""
    depth, height, width = voxels.shape
    c, s = np.cos(0.2), np.sin(0.2)
    read, phase, normal = (c, s, 0), (-s, c, 0), (0, 0, 1)
    found = []
    for z in range(1 if slabs else depth):
        image = ismrmrd.Image.from_array(voxels if slabs else voxels[z])
        image.field_of_view = (1.5 * width, 1.0 * height, 2.0 * (depth if slabs else 1))
        image.read_dir, image.phase_dir, image.slice_dir = read, phase, normal
        image.position = (3, -4, 10 + 2.0 * (0 if slabs else z))
        image.image_type, image.image_series_index, image.slice = 1, 1, z
        image.meta = ismrmrd.Meta({"DataRole": "Image", "ImageProcessingHistory": "FIRE", "IceMiniHead": "abc"})
        for name, value in header.items():
            setattr(image, name, value)
        found.append(image)
    return found


def stream(*parts: Any, close: bool = True) -> bytes:
    """These messages, one after the other."""
    out = io.BytesIO()
    writer = ProtocolSerializer(out)
    for part in parts:
        writer.serialize(part)
    if close:
        writer.close()
    return out.getvalue()


def session(voxels: NDArray[Any], *parts: Any, **options: Any) -> bytes:
    """A whole session: configuration, header, other messages, images, close."""
    return stream(ConfigFile("segmentation"), header(), *parts, *images(voxels, **options))


def header() -> ismrmrd.xsd.ismrmrdHeader:
    return ismrmrd.xsd.ismrmrdHeader(
        experimentalConditions=ismrmrd.xsd.experimentalConditionsType(H1resonanceFrequency_Hz=123_000_000)
    )


def read(data: bytes) -> list[Any]:
    """What the ismrmrd package makes of an answer, up to its close message."""
    return list(ProtocolDeserializer(io.BytesIO(data)).deserialize())


class Memory:
    """A connection whose client has sent all it will, in pieces of any size."""

    def __init__(self, data: bytes, piece: int = 2**30) -> None:
        self._data, self._at, self._piece = data, 0, piece
        self.sent = bytearray()

    def recv(self, size: int, /) -> bytes:
        size = min(size, self._piece)
        part = self._data[self._at : self._at + size]
        self._at += len(part)
        return part

    def sendall(self, data: bytes, /) -> None:
        self.sent += data

    def settimeout(self, seconds: float | None, /) -> None:
        assert seconds is not None and seconds > 0
