"""Messages of an MRD stream, read from and written to a socket that a stranger holds the other end of.

(ISMRMRD 1.x streaming: little-endian; a uint16 id, then the body.) Every length is checked before it is believed, every
wait has an end, and nothing that is read names code, files or classes: a configuration's name is a word and no more.
"""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mednext_edge.optional import require
from mednext_edge.task import Frozen


class Id(IntEnum):
    """Message ids."""

    CONFIG_FILE = 1
    CONFIG_TEXT = 2
    HEADER = 3
    CLOSE = 4
    TEXT = 5
    ACQUISITION = 1008
    IMAGE = 1022
    WAVEFORM = 1026


_CONFIG_FILE_BYTES = 1024
# Sizes of the fixed headers of raw data, and where the counts lie in them.
_ACQUISITION_HEADER, _WAVEFORM_HEADER = 340, 40
# By an image's data_type, 1 to 8.
DTYPES = tuple(np.dtype(name) for name in ("<u2", "<i2", "<u4", "<i4", "<f4", "<f8", "<c8", "<c16"))


class MrdLimits(Frozen):
    """What one client may use.

    Attributes:
        sessions: clients at one time.
        text_bytes: of one header, text or attribute string.
        image_bytes: of all images of a session.
        planes: of all images of a session.
        raw_bytes: of raw data, which is read and dropped, in a session.
        network_s: for one message, and without a word from the peer.
        session_s: for the client's part of a session.
    """

    sessions: int = Field(default=8, ge=1)
    text_bytes: int = Field(default=2**22, ge=1)
    image_bytes: int = Field(default=2**30, ge=1)
    planes: int = Field(default=20_000, ge=1)
    raw_bytes: int = Field(default=2**34, ge=0)
    network_s: float = Field(default=60, gt=0)
    session_s: float = Field(default=3600, gt=0)


class WireError(Exception):
    """A stream that is no MRD stream, or goes beyond the limits; `kind` in one word."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Connection(Protocol):
    """What is needed of a socket."""

    def recv(self, size: int, /) -> bytes: ...
    def sendall(self, data: bytes, /) -> None: ...
    def settimeout(self, seconds: float | None, /) -> None: ...


@dataclass(frozen=True)
class Text:
    """A message of words: a configuration's name (`id` 1), a configuration (2), a header (3) or a text (5)."""

    id: Id
    text: str


@dataclass(frozen=True)
class Image:
    """An image message.

    Attributes:
        header: ismrmrd's ImageHeader, 198 bytes.
        attributes: its attribute string, XML.
        data: [channels, z, y, x], as sent.
    """

    header: Any
    attributes: str
    data: NDArray[np.generic]


@dataclass(frozen=True)
class Dropped:
    """Raw data that was read and is of no use here."""

    id: Id


Message = Text | Image | Dropped


class Wire:
    """One client's stream.

    Args:
        connection: its socket.
        limits: what it may use.
    """

    def __init__(self, connection: Connection, limits: MrdLimits) -> None:
        self._connection, self._limits = connection, limits
        self._end = time.monotonic() + limits.session_s
        self._bytes = self._planes = self._raw = 0

    def messages(self) -> Iterator[Message]:
        """What the client sends until it closes, in whichever way: by a message, or the connection between two.

        Raises:
            WireError: an unknown id (`id`), a length beyond the limits (`size`), a stream that ends within a message
                (`truncated`), no word in time (`timeout`), numbers that are no image (`image`), bytes that are no text
                (`text`).
        """
        while True:
            start = self._read(2, may_end=True)
            if not start:
                return
            (number,) = struct.unpack("<H", start)
            if number not in Id._value2member_map_:
                raise WireError("id", f"found the message id {number}; expected one of {[int(i) for i in Id]}")
            if number == Id.CLOSE:
                return
            yield self._body(Id(number))

    def _body(self, number: Id) -> Message:
        if number is Id.CONFIG_FILE:
            return Text(number, _decoded(self._read(_CONFIG_FILE_BYTES).partition(b"\0")[0]))
        if number is Id.IMAGE:
            return self._image()
        if number is Id.ACQUISITION:
            head = self._read(_ACQUISITION_HEADER)
            samples, _, channels = struct.unpack_from("<3H", head, 34)
            (dimensions,) = struct.unpack_from("<H", head, 176)
            return self._dropped(number, 4 * samples * dimensions + 8 * samples * channels)
        if number is Id.WAVEFORM:
            samples, channels = struct.unpack_from("<2H", self._read(_WAVEFORM_HEADER), 28)
            return self._dropped(number, 4 * samples * channels)
        (size,) = struct.unpack("<I", self._read(4))
        return Text(number, _decoded(self._text(size)))

    def _image(self) -> Image:
        kind = require("ismrmrd.image", "mrd").ImageHeader
        header = kind.from_buffer_copy(self._read(ctypes.sizeof(kind)))
        (size,) = struct.unpack("<Q", self._read(8))
        attributes = _decoded(self._text(size))
        x, y, z = (int(n) for n in header.matrix_size)
        shape = (int(header.channels), z, y, x)
        voxels = shape[0] * x * y * z
        if not 1 <= header.data_type <= len(DTYPES) or voxels == 0:
            raise WireError("image", f"found an image of type {header.data_type} and shape {shape}")
        dtype = DTYPES[header.data_type - 1]
        self._bytes += voxels * dtype.itemsize
        self._planes += z
        if self._bytes > self._limits.image_bytes or self._planes > self._limits.planes:
            raise WireError(
                "size",
                f"more than {self._limits.image_bytes} bytes or {self._limits.planes} planes of images in one session",
            )
        data = np.frombuffer(self._read(voxels * dtype.itemsize), dtype).reshape(shape)
        return Image(header, attributes, data)

    def _text(self, size: int) -> bytes:
        if size > self._limits.text_bytes:
            raise WireError("size", f"found a text of {size} bytes; at most {self._limits.text_bytes} are read")
        return self._read(size)

    def _dropped(self, number: Id, size: int) -> Dropped:
        self._raw += size
        if self._raw > self._limits.raw_bytes:
            raise WireError("size", f"more than {self._limits.raw_bytes} bytes of raw data in one session")
        while size:
            size -= len(self._read(min(size, 2**20)))
        return Dropped(number)

    def _read(self, size: int, may_end: bool = False) -> bytes:
        """Exactly so many bytes; memory grows with what came, not with what was announced."""
        end = min(time.monotonic() + self._limits.network_s, self._end)
        data = bytearray()
        while len(data) < size:
            left = end - time.monotonic()
            if left <= 0:
                raise WireError("timeout", "the client was silent for too long")
            self._connection.settimeout(left)
            try:
                part = self._connection.recv(min(size - len(data), 2**20))
            except TimeoutError as error:
                raise WireError("timeout", "the client was silent for too long") from error
            except OSError as error:
                raise WireError("gone", "the connection broke") from error
            if not part:
                if may_end and not data:
                    return b""
                raise WireError("truncated", f"the stream ended after {len(data)} of {size} bytes of a message part")
            data += part
        return bytes(data)

    def send_image(self, header: Any, attributes: str, data: NDArray[np.generic]) -> None:
        """Send an image; `header` is changed to fit [channels, z, y, x] `data`."""
        words = attributes.encode()
        header.data_type = DTYPES.index(data.dtype.newbyteorder("<")) + 1
        header.channels = data.shape[0]
        header.matrix_size[:] = data.shape[:0:-1]
        header.attribute_string_len = len(words)
        self._send(struct.pack("<H", Id.IMAGE) + bytes(header) + struct.pack("<Q", len(words)) + words)
        self._send(np.ascontiguousarray(data).tobytes())

    def send_text(self, text: str) -> None:
        """Send words to the scanner's log; it shows those that begin with ERR in red, WRN in yellow."""
        words = text.encode() + b"\0"
        self._send(struct.pack("<HI", Id.TEXT, len(words)) + words)

    def close(self) -> None:
        """Say that nothing more comes."""
        self._send(struct.pack("<H", Id.CLOSE))

    def _send(self, data: bytes) -> None:
        self._connection.settimeout(self._limits.network_s)
        try:
            self._connection.sendall(data)
        except OSError as error:  # a timeout is one too
            raise WireError("gone", "the client takes nothing any more") from error


def _decoded(data: bytes) -> str:
    try:
        return data.rstrip(b"\0").decode()
    except UnicodeDecodeError as error:
        raise WireError("text", "found a text that is no UTF-8") from error
