"""`mednext-edge serve`: a bundle behind a DICOM node or an MRD stream."""

from __future__ import annotations

import ipaddress
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from mednext_edge.cli.console import DEVICE_OPTION, THREADS_OPTION, one_of, show_warning
from mednext_edge.errors import UsageError

if TYPE_CHECKING:
    from mednext_edge.serving.dicom.config import DicomConfig, Tls
    from mednext_edge.serving.dicom.service import DicomService
    from mednext_edge.serving.mrd.service import MrdService
    from mednext_edge.serving.segmenter import Segmenter

BUNDLE = typer.Argument(metavar="BUNDLE", help="Folder that mednext-export wrote; its digests are checked.")
HOST = typer.Option("--host", metavar="ADDRESS", help="Where to listen; 0.0.0.0 is every network of this machine.")
LOG_JSON = typer.Option("--json", help="Write the log as JSON lines on stdout. [default: words on stderr]")
STEP = typer.Option("-step_size", metavar="STEP", help="Step of the sliding window. [default: the task's]")
TTA = typer.Option("--tta", help="Average over flips; 8 times as slow in 3-D.")
HTTP_HELP = "Port of /health and /metrics (Prometheus); -1 for none, 0 a free one."
ANYONE = "*"


def dicom(
    bundle: Annotated[Path, BUNDLE],
    send_to: Annotated[
        list[str],
        typer.Option(
            "--send-to",
            metavar="ADDRESS",
            help="Where segmentation objects go: AE@HOST:PORT (C-STORE), dicoms://AE@HOST:PORT (with TLS), "
            "https://HOST/dicom-web/studies (STOW-RS) or file:FOLDER; may be given more than once.",
        ),
    ],
    host: Annotated[str, HOST] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="DICOM port; 0 takes a free one.")] = 11112,
    ae_title: Annotated[str, typer.Option("--ae-title", metavar="AE", help="This node's title.")] = "MEDNEXT",
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="AE",
            help=f"Calling AE title that is let in; may be given more than once. `{ANYONE}` lets everyone in, which is "
            "the default only on 127.0.0.1.",
        ),
    ] = None,
    spool: Annotated[
        Path, typer.Option("--spool", metavar="DIR", help="Folder of the queue; it holds patients' images.")
    ] = Path("mednext-spool"),
    quiet: Annotated[
        float,
        typer.Option(
            "--quiet",
            metavar="S",
            min=0.1,
            help="A series is complete when nothing of it came for S seconds, or for 30 while its association is open.",
        ),
    ] = 10,
    expect: Annotated[
        int | None, typer.Option("--expect", metavar="N", min=1, help="Or as soon as it has N slices.")
    ] = None,
    keep: Annotated[
        float,
        typer.Option("--keep", metavar="HOURS", min=0, help="Keep images so long after they were sent or refused."),
    ] = 24,
    associations: Annotated[int, typer.Option("--max-associations", min=1, help="Associations at one time.")] = 8,
    instance_mb: Annotated[int, typer.Option("--max-instance-mb", min=1, help="Largest object taken.")] = 64,
    spool_gb: Annotated[float, typer.Option("--max-spool-gb", min=0.001, help="Most that waits on the disk.")] = 50,
    free_gb: Annotated[float, typer.Option("--min-free-gb", min=0, help="What is left free on the spool's disk.")] = 1,
    max_voxels: Annotated[int, typer.Option("--max-voxels", min=1, help="Of one series; bounds the memory.")] = 2**29,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="This node's certificate, PEM: TLS only.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Its key, PEM.")] = None,
    tls_ca: Annotated[
        Path | None, typer.Option("--tls-ca", help="CA of the peers, PEM: they must show a certificate.")
    ] = None,
    stow_auth: Annotated[
        Path | None, typer.Option("--stow-auth", metavar="FILE", help="Holds STOW-RS's Authorization header.")
    ] = None,
    http_port: Annotated[int, typer.Option("--http-port", min=-1, max=65535, help=HTTP_HELP)] = 8042,
    step_size: Annotated[float | None, STEP] = None,
    tta: Annotated[bool, TTA] = False,
    device: Annotated[str | None, DEVICE_OPTION] = None,
    threads: Annotated[int | None, THREADS_OPTION] = None,
    json: Annotated[bool, LOG_JSON] = False,
) -> None:
    """Receive series, segment them, and send DICOM SEG on. Research software: not for diagnosis or treatment.

    CT, MR and PET slices are taken by C-STORE and acknowledged once they lie in the queue on the disk, which survives
    a power cut; a result is sent until each destination has acknowledged it. Series with missing, doubled or tilted
    slices are refused, and the log says why. Ctrl-C or SIGTERM ends the service; the queue waits for the next start.

    Examples:

    - `mednext-edge serve dicom hippocampus.openvino-int8 --send-to PACS@127.0.0.1:4242`
    - `mednext-edge serve dicom liver.int8 --host 0.0.0.0 --ae-title LIVER --allow SCANNER1 --send-to PACS@pacs:104`
    """
    from mednext_edge.serving.dicom.destinations import destination
    from mednext_edge.serving.dicom.service import DicomService
    from mednext_edge.serving.dicom.spool import Spool
    from mednext_edge.serving.log import EventLog
    from mednext_edge.serving.memory import bound_heaps

    config = _dicom_config(
        host=host,
        port=port,
        ae_title=ae_title,
        allow=_callers(host, allow),
        quiet_s=quiet,
        expect=expect,
        keep_s=keep * 3600,
        tls=_tls(tls_cert, tls_key, tls_ca),
        stow_authorization=None if stow_auth is None else _secret(stow_auth),
        limits={
            "associations": associations,
            "instance_bytes": instance_mb * 2**20,
            "spool_bytes": int(spool_gb * 2**30),
            "free_bytes": int(free_gb * 2**30),
            "voxels": max_voxels,
        },
    )
    targets = [destination(address, config) for address in send_to]
    bound_heaps()
    segmenter = _segmenter(bundle, device, threads, step_size, tta)
    queue = Spool(spool)
    try:
        _run(DicomService(config, segmenter, queue, targets, EventLog(json), None if http_port < 0 else http_port))
    finally:
        queue.close()
        segmenter.close()


def mrd(
    bundle: Annotated[Path, BUNDLE],
    host: Annotated[str, HOST] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="MRD port; 0 takes a free one.")] = 9002,
    send: Annotated[
        str,
        typer.Option(
            "--send",
            metavar="KIND",
            help="What goes back: labels, or overlay (the images with outlines); a client may ask for the other.",
            callback=one_of("kind of answer", ("labels", "overlay")),
        ),
    ] = "labels",
    sessions: Annotated[int, typer.Option("--max-sessions", min=1, help="Clients at one time.")] = 8,
    image_mb: Annotated[
        int, typer.Option("--max-image-mb", min=1, help="Images of one session; bounds memory.")
    ] = 1024,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", min=0.1, help="Longest silence of a client.")
    ] = 60,
    http_port: Annotated[int, typer.Option("--http-port", min=-1, max=65535, help=HTTP_HELP)] = 9003,
    step_size: Annotated[float | None, STEP] = None,
    tta: Annotated[bool, TTA] = False,
    device: Annotated[str | None, DEVICE_OPTION] = None,
    threads: Annotated[int | None, THREADS_OPTION] = None,
    json: Annotated[bool, LOG_JSON] = False,
) -> None:
    """Answer ISMRMRD streams (FIRE, OpenRecon, Gadgetron) with labels. Research software: not for diagnosis.

    A client sends its configuration, the header and reconstructed images, and closes; back come as many images, in a
    series of their own and with the same geometry. MRD has no authentication: keep the port inside the scanner.

    Examples:

    - `mednext-edge serve mrd brain-tissue.openvino-int8`
    - `mednext-edge serve mrd brain-tissue.openvino-int8 --host 0.0.0.0 --port 9002 --send overlay`
    """
    from mednext_edge.optional import require
    from mednext_edge.serving.log import EventLog
    from mednext_edge.serving.memory import bound_heaps
    from mednext_edge.serving.mrd.service import MrdService
    from mednext_edge.serving.mrd.wire import MrdLimits

    require("ismrmrd", "mrd")
    limits = MrdLimits(sessions=sessions, image_bytes=image_mb * 2**20, network_s=timeout)
    bound_heaps()
    segmenter = _segmenter(bundle, device, threads, step_size, tta)
    try:
        _run(MrdService(host, port, segmenter, send, limits, EventLog(json), None if http_port < 0 else http_port))
    finally:
        segmenter.close()


def _run(service: DicomService | MrdService) -> None:
    """Until Ctrl-C or SIGTERM."""
    from mednext_edge.serving.memory import settle

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: service.stop())
    settle()
    service.run()


def _segmenter(bundle: Path, device: str | None, threads: int | None, step: float | None, mirror: bool) -> Segmenter:
    from mednext_edge.runtime.engines import OpenOptions
    from mednext_edge.serving.segmenter import Segmenter

    segmenter = Segmenter(bundle, OpenOptions(device, threads), step=step, mirror=mirror)
    if segmenter.manifest.gate.status == "failed":
        show_warning(f"{bundle} failed its accuracy gate when it was exported")
    return segmenter


def _dicom_config(**values: Any) -> DicomConfig:
    from mednext_edge.serving.dicom.config import DicomConfig

    try:
        return DicomConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"{option}: {first['msg'].removeprefix('Value error, ')}") from error


def _secret(file: Path) -> str:
    try:
        words = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--stow-auth: {file} cannot be read: {error}") from error
    if not words or not words.isprintable():
        raise UsageError(
            f"--stow-auth: {file} holds no line of text; expected a header's value, as `Basic dXNlcjp3b3Jk`"
        )
    return words


def _callers(host: str, allow: list[str] | None) -> tuple[str, ...]:
    """Who may call; on a network, someone must say so."""
    if not allow and not _loopback(host):
        raise UsageError(
            f"listening on {host} without --allow would take images from anyone; name the AE titles that may send, "
            f"or say `--allow '{ANYONE}'`"
        )
    return () if not allow or ANYONE in allow else tuple(allow)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tls(cert: Path | None, key: Path | None, ca: Path | None) -> Tls | None:
    from mednext_edge.serving.dicom.config import Tls

    if cert is None and key is None and ca is None:
        return None
    if cert is None or key is None:
        raise UsageError("--tls-cert and --tls-key belong together")
    return Tls(cert=cert, key=key, ca=ca)
