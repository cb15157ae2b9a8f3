"""Bounds on what a DICOM peer may send, which pynetdicom leaves open.

The length in a PDU's header (PS3.8, 9.3.1) may be 4 GiB, and a message may have any number of PDUs; both would be
gathered in memory. And a TLS handshake would be waited for by the thread that accepts all connections.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any


class BoundedReceiver:
    """Stands in for the `recv` of pynetdicom's socket: so many bytes a PDU and a message, so long for a PDU.

    What goes beyond raises OSError, on which pynetdicom closes the connection.

    Args:
        sock: pynetdicom's own AssociationSocket.
        pdu_bytes: of one PDU.
        message_bytes: since `message_done` was called last.
        seconds: for the bytes of one call.
    """

    def __init__(self, sock: Any, *, pdu_bytes: int, message_bytes: int, seconds: float) -> None:
        self._socket = sock
        self._pdu_bytes, self._message_bytes, self._seconds = pdu_bytes, message_bytes, seconds
        self._received = 0
        self.exceeded = False

    def __call__(self, size: int) -> bytearray:
        self._received += size
        if size > self._pdu_bytes or self._received > self._message_bytes:
            self.exceeded = True
            raise OSError("more bytes than this node takes")
        connection: socket.socket = self._socket.socket
        deadline = time.monotonic() + self._seconds
        data = bytearray()
        while len(data) < size:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("a PDU did not arrive in time")
            connection.settimeout(left)
            part = connection.recv(min(size - len(data), 65536))
            if not part:
                break
            data += part
        connection.settimeout(self._seconds)
        return data

    def message_done(self) -> None:
        self._received = 0


class LazyTlsContext(ssl.SSLContext):
    """Shakes hands on the first read, which is on the connection's own thread and has a timeout."""

    timeout: float = 30.0

    def wrap_socket(self, sock: socket.socket, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        sock.settimeout(self.timeout)
        return super().wrap_socket(sock, *args, **{**kwargs, "do_handshake_on_connect": False})
