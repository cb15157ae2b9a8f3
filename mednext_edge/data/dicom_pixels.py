"""The pixels of one DICOM slice, with their size checked before anything is decoded."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mednext_edge.errors import DataError
from mednext_edge.optional import require

if TYPE_CHECKING:
    from pydicom import Dataset

# JPEG's start-of-frame markers (ISO/IEC 10918-1, table B.1) without DHT, JPG and DAC; and JPEG-LS's (14495-1, C.2.2).
_FRAME_MARKERS = (frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}


def readable_syntaxes() -> tuple[str, ...]:
    """UIDs of the transfer syntaxes whose pixels can be decoded here, the plain ones first.

    Deflated data sets are not among them: their size is not known before they are inflated.
    """
    uid = require("pydicom.uid", "dicom")
    get_decoder = require("pydicom.pixels", "dicom").get_decoder
    compressed = (
        uid.RLELossless,
        *(uid.JPEG2000Lossless, uid.JPEG2000),
        *(uid.JPEGLSLossless, uid.JPEGLSNearLossless),
        *(uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit),
    )
    plain = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)
    return tuple(str(u) for u in (*plain, *(c for c in compressed if get_decoder(c).is_available)))


def codestream_size(data: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 codestream states; None where it states none."""
    start = data.find(b"\xff\x4f\xff\x51")
    if 0 <= start < 200 and len(data) >= start + 24:  # SIZ comes first (ISO/IEC 15444-1, A.5.1); boxes may precede
        width, height, left, top = struct.unpack_from(">4I", data, start + 8)
        return height - top, width - left
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        if data[at + 1] in _FRAME_MARKERS:
            rows, columns = struct.unpack_from(">2H", data, at + 5)
            return rows, columns
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def read_pixels(dataset: Dataset, name: str) -> NDArray[np.float32]:
    """Pixels of a single-frame image [rows, columns] in the modality's units (rescale slope and intercept).

    Args:
        dataset: with its pixel data.
        name: what to call it in messages.

    Raises:
        DataError: a transfer syntax that cannot be decoded here, pixels that are missing, damaged or not grey values.
    """
    encaps = require("pydicom.encaps", "dicom")
    shape = (int(dataset.Rows), int(dataset.Columns))
    syntax = dataset.file_meta.TransferSyntaxUID
    if str(syntax) not in readable_syntaxes():
        raise DataError(
            f"{name} is stored as {syntax.name}, which cannot be decoded here; convert it with dcmconv first"
        )
    if "PixelData" not in dataset:
        raise DataError(f"{name} holds no pixels")
    try:
        if syntax.is_encapsulated:
            stated = codestream_size(encaps.get_frame(dataset.PixelData, 0, number_of_frames=1))
            if stated is not None and stated != shape:
                raise DataError(f"{name} has a codestream of {stated} pixels; its header says {shape}")
        pixels = np.asarray(dataset.pixel_array)
        pixels = pixels.astype(np.float32) * _number(dataset, "RescaleSlope", 1) + _number(
            dataset, "RescaleIntercept", 0
        )
    except DataError:
        raise
    except Exception as error:  # decoders fail in their own ways on damaged data
        raise DataError(f"the pixels of {name} cannot be decoded: {type(error).__name__}") from error
    if pixels.shape != shape or not np.isfinite(pixels).all():
        raise DataError(f"{name} decodes to {pixels.shape} pixels, expected {shape} finite grey values")
    return pixels


def _number(dataset: Dataset, keyword: str, default: float) -> np.float32:
    """An attribute that may be absent or empty."""
    value = dataset.get(keyword)
    return np.float32(default if value is None or value == "" else float(value))
