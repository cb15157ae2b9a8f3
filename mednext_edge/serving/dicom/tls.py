"""TLS of both directions (PS3.15, B.9 and later profiles: TLS 1.2 or newer)."""

from __future__ import annotations

import ssl

from mednext_edge.errors import UsageError
from mednext_edge.serving.dicom.bounded import LazyTlsContext
from mednext_edge.serving.dicom.config import Tls


def server_context(tls: Tls, timeout: float) -> ssl.SSLContext:
    """What the node listens with; with a CA, peers must show a certificate.

    Raises:
        UsageError: a file that is missing, no PEM, or a key that does not fit.
    """
    context = LazyTlsContext(ssl.PROTOCOL_TLS_SERVER)
    context.timeout = timeout
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, tls)
    if tls.ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(tls: Tls | None) -> ssl.SSLContext:
    """What the node sends with: the peer's name and certificate are checked, by the CA or those of the system."""
    context = ssl.create_default_context()
    if tls is not None:
        _load(context, tls)
    return context


def _load(context: ssl.SSLContext, tls: Tls) -> None:
    try:
        context.load_cert_chain(tls.cert, tls.key)
        if tls.ca is not None:
            context.load_verify_locations(tls.ca)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(path) for path in (tls.cert, tls.key, tls.ca) if path is not None)
        raise UsageError(
            f"the TLS files {files} cannot be used: {error}; expected PEM and the certificate's own key"
        ) from error
