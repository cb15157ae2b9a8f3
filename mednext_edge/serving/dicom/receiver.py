"""The C-STORE service class provider: what arrives is checked, put on the disk, and only then acknowledged."""

from __future__ import annotations

import re
import shutil
import threading
import weakref
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from mednext_edge.data.dicom import IMAGE_CLASSES, read_header
from mednext_edge.data.dicom_pixels import readable_syntaxes
from mednext_edge.errors import DataError, UsageError
from mednext_edge.optional import require
from mednext_edge.serving.dicom.bounded import BoundedReceiver
from mednext_edge.serving.dicom.config import DicomConfig
from mednext_edge.serving.dicom.spool import Full, Spool, disk_full
from mednext_edge.serving.dicom.tls import server_context
from mednext_edge.serving.log import Emit
from mednext_edge.serving.metrics import Labels, Metrics

if TYPE_CHECKING:
    from pynetdicom.events import Event

# Statuses of a C-STORE response (PS3.4, B.2.3).
SUCCESS, OUT_OF_RESOURCES, MISMATCH, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000

_VERIFICATION = "1.2.840.10008.1.1"
_PDU_BYTES = 128 * 1024
# What the protocol adds to an instance: command set and PDU headers.
_OVERHEAD = 1024 * 1024
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")  # PS3.5, 9.1; at most 64 characters
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")


class _Refused(Exception):
    def __init__(self, status: int, kind: str) -> None:
        super().__init__(kind)
        self.status, self.kind = status, kind


class Receiver:
    """Listens for associations until it is closed.

    Args:
        config: addresses, allowed callers, limits.
        spool: where images go.
        metrics, emit: where it counts and tells.

    Attributes:
        port: the one it listens on.
        spool_bytes: what the spool holds, as measured last by whoever looks after it.

    Raises:
        UsageError: the port is taken, or the TLS files cannot be used.
        TargetUnavailableError: pynetdicom is not installed.
    """

    def __init__(self, config: DicomConfig, spool: Spool, metrics: Metrics, emit: Emit) -> None:
        pynetdicom = require("pynetdicom", "dicom")
        evt = pynetdicom.evt
        self._config, self._spool, self._metrics, self._emit = config, spool, metrics, emit
        self.spool_bytes = 0
        self._closing = False
        self._lock = threading.Lock()
        # The series that each association sent last, as long as there is the association.
        self._latest: MutableMapping[Any, str] = weakref.WeakKeyDictionary()
        limits = config.limits
        entity = pynetdicom.AE(ae_title=config.ae_title)
        entity.maximum_associations = limits.associations
        entity.maximum_pdu_size = _PDU_BYTES
        entity.network_timeout = entity.acse_timeout = entity.dimse_timeout = limits.network_s
        entity.require_called_aet = True
        entity.require_calling_aet = list(config.allow)
        syntaxes = list(readable_syntaxes())
        for uid in IMAGE_CLASSES:
            entity.add_supported_context(uid, syntaxes)
        entity.add_supported_context(_VERIFICATION)
        handlers = [
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_ACCEPTED, self._accepted),
            (evt.EVT_REJECTED, self._rejected),
            (evt.EVT_CONN_CLOSE, self._closed),
            (evt.EVT_C_STORE, self._store),
        ]
        context = None if config.tls is None else server_context(config.tls, limits.network_s)
        try:
            self._server = entity.start_server(
                (config.host, config.port), block=False, evt_handlers=handlers, ssl_context=context
            )
        except OSError as error:
            raise UsageError(
                f"{config.host}:{config.port} cannot be listened on: {error.strerror}; choose another --port or --host"
            ) from error
        self.port = int(self._server.server_address[1])

    def associations(self) -> dict[Labels, float]:
        """For the gauge: how many there are."""
        return {(): float(len(self._server.active_associations))}

    def held(self) -> set[str]:
        """Keys of the series that an association which is still open sent last: more of them may be on the way."""
        with self._lock:
            return set(self._latest.values())

    def close(self) -> None:
        """Take no more instances, and end the associations."""
        self._closing = True
        self._server.shutdown()

    def _opened(self, event: Event) -> None:
        limits, sock = self._config.limits, event.assoc.dul.socket
        sock.recv = BoundedReceiver(
            sock,
            pdu_bytes=_PDU_BYTES + 16,
            message_bytes=limits.instance_bytes + _OVERHEAD,
            seconds=limits.network_s,
        )

    def _closed(self, event: Event) -> None:
        with self._lock:
            self._latest.pop(event.assoc, None)
        receiver = getattr(event.assoc.dul.socket, "recv", None)
        if isinstance(receiver, BoundedReceiver) and receiver.exceeded:
            self._metrics.count("refused_total", reason="too-large")
            self._emit("refused", "warning", reason="too-large", peer=event.assoc.requestor.ae_title)

    def _accepted(self, event: Event) -> None:
        self._metrics.count("associations_total", outcome="accepted")
        self._emit("association", peer=event.assoc.requestor.ae_title, contexts=len(event.assoc.accepted_contexts))

    def _rejected(self, event: Event) -> None:
        self._metrics.count("associations_total", outcome="rejected")
        self._emit("association-rejected", "warning", peer=event.assoc.requestor.ae_title)

    def _store(self, event: Event) -> int:
        """Handler of EVT_C_STORE: the response's status."""
        receiver = event.assoc.dul.socket.recv
        if isinstance(receiver, BoundedReceiver):
            receiver.message_done()
        try:
            self._take(event)
        except _Refused as refused:
            self._metrics.count("refused_total", reason=refused.kind)
            self._emit("refused", "warning", reason=refused.kind, peer=event.assoc.requestor.ae_title)
            return refused.status
        except OSError as error:
            kind = "disk-full" if disk_full(error) else "disk"
            self._metrics.count("refused_total", reason=kind)
            self._emit("refused", "error", reason=kind, error=error.strerror or "")
            return OUT_OF_RESOURCES
        except Exception as error:  # a peer's bytes must never end the node, and the words of errors may quote them
            self._metrics.count("refused_total", reason="internal")
            self._emit("refused", "error", reason="internal", error=type(error).__name__)
            return NOT_UNDERSTOOD
        self._metrics.count("instances_total")
        return SUCCESS

    def _take(self, event: Event) -> None:
        limits = self._config.limits
        if self._closing:
            raise _Refused(OUT_OF_RESOURCES, "closing")
        if self.spool_bytes > limits.spool_bytes:
            raise _Refused(OUT_OF_RESOURCES, "spool-full")
        if shutil.disk_usage(self._spool.root).free < limits.free_bytes:
            raise _Refused(OUT_OF_RESOURCES, "disk-full")
        file = self._spool.temporary()
        try:
            file.write_bytes(event.encoded_dataset())
            uids = self._uids(event, file)
            try:
                key = self._spool.add(
                    file, uids["StudyInstanceUID"], uids["SeriesInstanceUID"], uids["SOPInstanceUID"],
                    limits.slices, limits.open_series,
                )  # fmt: skip
            except Full as full:
                raise _Refused(OUT_OF_RESOURCES, f"too-many-{full}") from full
            with self._lock:
                self._latest[event.assoc] = key
        finally:
            file.unlink(missing_ok=True)

    def _uids(self, event: Event, file: Any) -> dict[str, str]:
        try:
            header = read_header(file, "the instance", list(_UIDS))
            found = {keyword: str(header.get(keyword, "") or "") for keyword in _UIDS}
        except DataError as error:
            raise _Refused(NOT_UNDERSTOOD, "unreadable") from error
        if not all(len(uid) <= 64 and _UID.fullmatch(uid) for uid in found.values()):
            raise _Refused(NOT_UNDERSTOOD, "uid")
        request = event.request
        stated = (str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
        if stated != (found["SOPClassUID"], found["SOPInstanceUID"]) or event.context.abstract_syntax != stated[0]:
            raise _Refused(MISMATCH, "mismatch")
        return found
