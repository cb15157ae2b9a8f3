"""Where segmentation objects go: another DICOM node, a DICOMweb server, or a folder; by the scheme of its address."""

from __future__ import annotations

import http.client
import secrets
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import TypeAdapter, ValidationError

from mednext_edge.bundle.swap import sync
from mednext_edge.data.dicom_seg import SEGMENTATION_STORAGE
from mednext_edge.errors import UsageError
from mednext_edge.optional import require
from mednext_edge.registry import Registry
from mednext_edge.serving.dicom.config import AeTitle, DicomConfig
from mednext_edge.serving.dicom.tls import client_context


class Outcome(Enum):
    """What became of one try: only SENT ends the trying."""

    SENT = "sent"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"


class Destination(ABC):
    """Somewhere to send to.

    Attributes:
        name: its address as it was given, without any password; what the ledger and the logs call it.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def send(self, file: Path) -> tuple[Outcome, str]:
        """Send one DICOM file: the outcome, and a word or number on it. Raises nothing that a peer can cause."""


Build = Callable[[str, SplitResult, DicomConfig], Destination]
SCHEMES: Registry[Build] = Registry("kind of destination")


def destination(address: str, config: DicomConfig) -> Destination:
    """A destination by its address.

    Args:
        address: `AE@HOST:PORT` or `dicom://AE@HOST:PORT`; `dicoms://` for TLS; `http(s)://.../studies` for STOW-RS;
            `file:FOLDER`.
        config: of the node that sends.

    Raises:
        UsageError: not such an address, or a folder that is not there.
        UnknownNameError: another scheme.
    """
    text = address if ":/" in address or address.startswith("file:") else f"dicom://{address}"
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"`{address}` is no address: {error}") from error
    return SCHEMES[parts.scheme](address, parts, config)


class _Node(Destination):
    """C-STORE service class user (PS3.4, B)."""

    def __init__(self, name: str, parts: SplitResult, config: DicomConfig) -> None:
        super().__init__(name)
        try:
            title = TypeAdapter(AeTitle).validate_python(unquote(parts.username or ""))
        except ValidationError as error:
            raise UsageError(f"`{name}` names no AE title; expected AE@HOST:PORT") from error
        if not parts.hostname or not parts.port:
            raise UsageError(f"`{name}` names no host and port; expected AE@HOST:PORT")
        self._title, self._host, self._port = title, parts.hostname, parts.port
        uid = require("pydicom.uid", "dicom")
        entity = require("pynetdicom", "dicom").AE(ae_title=config.ae_title)
        entity.add_requested_context(SEGMENTATION_STORAGE, [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
        seconds = config.limits.network_s
        entity.connection_timeout = entity.network_timeout = entity.acse_timeout = entity.dimse_timeout = seconds
        self._entity = entity
        self._tls = (client_context(config.tls), self._host) if parts.scheme == "dicoms" else None

    def send(self, file: Path) -> tuple[Outcome, str]:
        dataset = require("pydicom", "dicom").dcmread(file)
        association = self._entity.associate(self._host, self._port, ae_title=self._title, tls_args=self._tls)
        if not association.is_established:
            rejected = association.is_rejected
            return (Outcome.REFUSED, "association rejected") if rejected else (Outcome.UNREACHABLE, "no association")
        try:
            if not association.accepted_contexts:
                return Outcome.REFUSED, "takes no segmentation objects"
            status = association.send_c_store(dataset)
        except (RuntimeError, ValueError, OSError) as error:  # the association has ended meanwhile
            return Outcome.UNREACHABLE, type(error).__name__
        finally:
            if association.is_established:
                association.release()
        code = status.get("Status")
        if code is None:
            return Outcome.UNREACHABLE, "no response"
        # Bxxx: stored, with a warning (PS3.4, B.2.3).
        stored = code == 0x0000 or code >> 12 == 0xB
        return (Outcome.SENT if stored else Outcome.REFUSED), f"0x{code:04X}"


class _Stow(Destination):
    """STOW-RS (PS3.18, 10.5): one instance as multipart/related."""

    def __init__(self, name: str, parts: SplitResult, config: DicomConfig) -> None:
        super().__init__(f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "") + parts.path)
        if not parts.hostname or parts.username:
            raise UsageError(f"`{self.name}` names no host, or holds a user; give credentials in a file (--stow-auth)")
        self._host, self._port, self._seconds = parts.hostname, parts.port, config.limits.network_s
        self._path = parts.path.rstrip("/") or "/"
        self._authorization = config.stow_authorization
        self._tls: ssl.SSLContext | None = client_context(config.tls) if parts.scheme == "https" else None

    def send(self, file: Path) -> tuple[Outcome, str]:
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = head + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": "application/dicom+json",
        }
        if self._authorization:
            headers["Authorization"] = self._authorization
        connection = (
            http.client.HTTPConnection(self._host, self._port, timeout=self._seconds)
            if self._tls is None
            else http.client.HTTPSConnection(self._host, self._port, timeout=self._seconds, context=self._tls)
        )
        try:
            connection.request("POST", self._path, body, headers)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            return Outcome.UNREACHABLE, type(error).__name__
        finally:
            connection.close()
        # 202 and 409 say that instances were not stored; there is but one here.
        return (Outcome.SENT if status == 200 else Outcome.REFUSED), f"HTTP {status}"


class _Folder(Destination):
    """Copies into a folder, under the SOP instance UID's name."""

    def __init__(self, name: str, parts: SplitResult, config: DicomConfig) -> None:
        super().__init__(name)
        self._folder = Path(unquote(parts.path))
        if not self._folder.is_dir():
            raise UsageError(f"no such folder: {self._folder}")

    def send(self, file: Path) -> tuple[Outcome, str]:
        uid = require("pydicom", "dicom").dcmread(file, specific_tags=["SOPInstanceUID"]).SOPInstanceUID
        temporary = self._folder / f".{secrets.token_hex(16)}.tmp"
        try:
            temporary.write_bytes(file.read_bytes())
            sync(temporary)
            temporary.replace(self._folder / f"{uid}.dcm")
            sync(self._folder)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            return Outcome.UNREACHABLE, error.strerror or type(error).__name__
        return Outcome.SENT, "copied"


for _scheme, _build in (
    *(("dicom", _Node), ("dicoms", _Node)),
    *(("http", _Stow), ("https", _Stow)),
    ("file", _Folder),
):
    SCHEMES.add(_scheme, _build)
