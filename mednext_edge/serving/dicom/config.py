"""How a DICOM node is set up, and what it may use of the machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from mednext_edge.task import Frozen

MB = 2**20
GB = 2**30


def _ae_title(title: str) -> str:
    """PS3.5, 6.2, AE: up to 16 characters of the default repertoire without backslash and control characters."""
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", title) or not title.strip():
        raise ValueError(f"`{title}` is no AE title; expected 1 to 16 ASCII characters without a backslash")
    return title.strip()


AeTitle = Annotated[str, AfterValidator(_ae_title)]


class Tls(Frozen):
    """Certificate and key of this node in PEM; with `ca` peers must show a certificate signed by it."""

    cert: Path
    key: Path
    ca: Path | None = None


class Limits(Frozen):
    """What peers may use.

    Attributes:
        associations: at one time.
        instance_bytes: of one object as it is sent.
        slices: of one series.
        open_series: series that are being received.
        voxels: of one series, once decoded.
        spool_bytes: of everything that waits on disk.
        free_bytes: left free on the spool's disk.
        network_s: without a word from the peer, and for one PDU.
    """

    associations: int = Field(default=8, ge=1)
    instance_bytes: int = Field(default=64 * MB, ge=1024)
    slices: int = Field(default=5000, ge=1)
    open_series: int = Field(default=100, ge=1)
    voxels: int = Field(default=2**29, ge=1)
    spool_bytes: int = Field(default=50 * GB, ge=1)
    free_bytes: int = Field(default=1 * GB, ge=0)
    network_s: float = Field(default=30, gt=0)


class DicomConfig(Frozen):
    """A DICOM node.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        ae_title: its own.
        allow: calling AE titles that are let in; empty lets everyone in.
        quiet_s: a series is complete when nothing of it came for so long; while the association that sent it last is
            open, for `limits.network_s` at least.
        expect: or when it has so many slices; None knows no number.
        keep_s: how long images and results stay on disk after they were sent or refused.
        retry_s: longest pause between two tries to send.
        stow_authorization: value of the Authorization header for STOW-RS.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=11112, ge=0, le=65535)
    ae_title: AeTitle = "MEDNEXT"
    allow: tuple[AeTitle, ...] = ()
    quiet_s: float = Field(default=10, gt=0)
    expect: int | None = Field(default=None, ge=1)
    keep_s: float = Field(default=24 * 3600, ge=0)
    retry_s: float = Field(default=300, gt=0)
    tls: Tls | None = None
    stow_authorization: str | None = None
    limits: Limits = Limits()
