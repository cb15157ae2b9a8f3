"""MRD sessions, as the ismrmrd package speaks them."""

from __future__ import annotations

import io
import socket

import ismrmrd
import numpy as np
from ismrmrd.serialization import ProtocolDeserializer

from tests.serving.mrd.streams import session

from .outcome import judge, references

KINDS = 8
"""Different volumes, so that an answer to another client's images is seen."""
ANSWER_S = 300
LARGEST = 40


class MrdClient:
    """Sends one of a few volumes and compares the answer with the one that came when nothing else was sent.

    Args:
        port: of a service on this machine, which is asked for every volume once.

    Raises:
        RuntimeError: it does not answer each with labels of its own.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        generator = np.random.default_rng(0)
        self._sessions, self._slices = [], []
        for _ in range(KINDS):
            shape = generator.integers(LARGEST // 3, LARGEST + 1, 3)
            self._sessions.append(session(generator.integers(0, 1000, shape).astype(np.uint16)))
            self._slices.append(int(shape[0]))
        self._expected = references([self._answer(kind) for kind in range(KINDS)])

    def send(self, number: int) -> str:
        """One session; its outcome.

        Raises:
            OSError, EOFError, ValueError: as the service or the connection failed.
        """
        kind = number % KINDS
        return judge(self._answer(kind), self._expected[kind])

    def _answer(self, kind: int) -> list[bytes]:
        """The labels that came back, once for every whole volume of them."""
        with socket.create_connection(("127.0.0.1", self._port), timeout=ANSWER_S) as connection:
            connection.sendall(self._sessions[kind])
            data = bytearray()
            while part := connection.recv(2**16):
                data += part
        images = list(ProtocolDeserializer(io.BytesIO(bytes(data))).deserialize())
        if not all(isinstance(image, ismrmrd.Image) for image in images):
            raise ValueError("the service answered with words")
        return whole([image.data.tobytes() for image in images], self._slices[kind])


def whole(slices: list[bytes], depth: int) -> list[bytes]:
    """Volumes of `depth` slices each, in the order in which they came.

    Raises:
        ValueError: slices are left over.
    """
    if len(slices) % depth:
        raise ValueError(f"found {len(slices)} slices; expected volumes of {depth}")
    return [b"".join(slices[start : start + depth]) for start in range(0, len(slices), depth)]
