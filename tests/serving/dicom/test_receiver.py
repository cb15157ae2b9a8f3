"""What the node takes and refuses, seen from pynetdicom as a peer and from a bare socket."""

from __future__ import annotations

import errno
import shutil
import socket
import struct
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pynetdicom
import pytest
from pydicom import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, SecondaryCaptureImageStorage

from mednext_edge.data.dicom_pixels import readable_syntaxes
from mednext_edge.errors import UsageError
from mednext_edge.serving.dicom.config import DicomConfig
from mednext_edge.serving.dicom.receiver import Receiver
from mednext_edge.serving.dicom.spool import Spool
from mednext_edge.serving.segmenter import Segmenter
from tests.data.dicom_series import PATIENT, save_slices
from tests.serving.conftest import need, storescu, wait_for

from .conftest import Node, StartNode


def send(node: Node, *slices: Dataset, caller: str = "SCANNER", called: str = "MEDNEXT", **options: Any) -> list[int]:
    """Status of each instance's response."""
    entity = pynetdicom.AE(ae_title=caller)
    for uid in {str(ds.file_meta.MediaStorageSOPClassUID) for ds in slices}:
        entity.add_requested_context(uid, [ds.file_meta.TransferSyntaxUID for ds in slices][:1])
    association = entity.associate("127.0.0.1", node.port, ae_title=called, **options)
    if not association.is_established:
        return []
    found = [int(association.send_c_store(ds).get("Status", -1)) for ds in slices]
    association.release()
    return found


def test_instances_are_on_the_disk_when_they_are_acknowledged(start_node: StartNode, slices: list[Dataset]) -> None:
    node = start_node(quiet_s=60)
    assert send(node, *slices) == [0] * 6
    (folder,) = (node.service.spool.root / "incoming").iterdir()
    files = list((folder / "slices").iterdir())
    assert {pydicom.dcmread(file).SOPInstanceUID for file in files} == {ds.SOPInstanceUID for ds in slices}
    assert node.service.metrics.value("instances_total") == 6


def test_every_readable_syntax_is_taken(start_node: StartNode, slices: list[Dataset]) -> None:
    node = start_node(quiet_s=60)
    entity = pynetdicom.AE()
    for syntax in readable_syntaxes():
        entity.add_requested_context(CTImageStorage, syntax)
    association = entity.associate("127.0.0.1", node.port, ae_title="MEDNEXT")
    taken = {str(context.transfer_syntax[0]) for context in association.accepted_contexts}
    association.release()
    assert taken == set(readable_syntaxes()) >= {ExplicitVRLittleEndian, JPEG2000Lossless}


def test_a_class_that_is_not_segmented_has_no_context(start_node: StartNode, slices: list[Dataset]) -> None:
    node = start_node()
    slices[0].SOPClassUID = slices[0].file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    entity = pynetdicom.AE()
    entity.add_requested_context(SecondaryCaptureImageStorage)
    association = entity.associate("127.0.0.1", node.port, ae_title="MEDNEXT")
    assert not association.accepted_contexts
    if association.is_established:
        association.abort()


@pytest.mark.parametrize(
    ("status", "reason", "change"),
    [
        (0xA900, "mismatch", {"SOPClassUID": CTImageStorage}),
        (0xC000, "uid", {"SeriesInstanceUID": ""}),
        (0xC000, "uid", {"StudyInstanceUID": None}),
        (0xC000, "uid", {"SeriesInstanceUID": "../../etc/passwd"}),
        (0xC000, "uid", {"SeriesInstanceUID": "1." + "2" * 70}),
    ],
)
def test_instances_that_cannot_be_filed(
    start_node: StartNode,
    slices: list[Dataset],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    reason: str,
    change: dict[str, object],
) -> None:
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
    node = start_node()
    original = {key: slices[0].get(key) for key in ("SOPClassUID", "SOPInstanceUID")}
    entity = pynetdicom.AE()
    entity.add_requested_context(original["SOPClassUID"])
    association = entity.associate("127.0.0.1", node.port, ae_title="MEDNEXT")
    request = pynetdicom.dimse_primitives.C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = original["SOPClassUID"], original["SOPInstanceUID"]
    for key, value in change.items():
        setattr(slices[0], key, value)
    (context,) = association.accepted_contexts
    syntax = context.transfer_syntax[0]
    data = pynetdicom.dsutils.encode(slices[0], syntax.is_implicit_VR, syntax.is_little_endian)
    assert data is not None
    request.DataSet = BytesIO(data)
    association._reactor_checkpoint.clear()  # as the library's own senders do, so that the answer is ours to read
    wait_for(lambda: association._is_paused, "the association's thread")
    association.dimse.send_msg(request, context.context_id)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    association.release()
    assert response.Status == status
    assert [event["reason"] for event in node.of("refused")] == [reason]
    assert node.service.spool.counts()["incoming"] == 0


def test_allow_list_and_called_title(start_node: StartNode, slices: list[Dataset]) -> None:
    node = start_node(allow=("SCANNER", "OTHER"), quiet_s=60)
    assert send(node, slices[0]) == [0]
    assert send(node, slices[0], caller="STRANGER") == []
    assert send(node, slices[0], called="SOMEONE") == []
    node.wait("association-rejected", 2)
    assert node.service.metrics.value("associations_total", outcome="rejected") == 2


def test_more_associations_than_there_may_be(start_node: StartNode) -> None:
    node = start_node(limits={"associations": 2})
    entity = pynetdicom.AE()
    entity.add_requested_context("1.2.840.10008.1.1")
    three = [entity.associate("127.0.0.1", node.port, ae_title="MEDNEXT") for _ in range(3)]
    assert [a.is_established for a in three] == [True, True, False]
    for association in three[:2]:
        association.release()


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"slices": 2}, "too-many-slices"),
        ({"free_bytes": 2**60}, "disk-full"),
        ({"open_series": 1}, "too-many-series"),
    ],
)
def test_limits_answer_out_of_resources(
    start_node: StartNode, slices: list[Dataset], limits: dict[str, int], reason: str
) -> None:
    node = start_node(limits=limits, quiet_s=60)
    if reason == "too-many-series":
        for i, ds in enumerate(slices):
            ds.SeriesInstanceUID = f"1.2.3.{i}"
    found = send(node, *slices[:3])
    assert found[-1] == 0xA700
    assert {event["reason"] for event in node.of("refused")} == {reason}


def test_a_full_spool_takes_nothing_more(start_node: StartNode, slices: list[Dataset]) -> None:
    node = start_node(limits={"spool_bytes": 1})
    (node.service.spool.root / "tmp" / "waiting").write_bytes(bytes(2))  # the service measures again and again
    wait_for(lambda: node.service.receiver.spool_bytes > 1, "the size of the spool")
    assert send(node, slices[0]) == [0xA700]


def test_a_full_disk_is_an_answer_and_leaves_nothing(
    start_node: StartNode, slices: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start_node(quiet_s=60)
    real = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        real(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert send(node, slices[0]) == [0xA700]
    assert [event["reason"] for event in node.of("refused")] == ["disk-full"]
    assert not list((node.service.spool.root / "tmp").iterdir())
    assert send(node, slices[0]) == [0]


def test_an_instance_over_the_limit_ends_its_association(start_node: StartNode, slices: list[Dataset]) -> None:
    node = start_node(limits={"instance_bytes": 1024})
    slices[0].PixelData = bytes(3 * 2**20)
    assert send(node, slices[0]) in ([-1], [])
    node.wait("refused")
    assert node.of("refused")[0]["reason"] == "too-large"
    slices[1].PixelData = slices[1].PixelData[:100]
    assert send(node, slices[1]) == [0]


def test_a_pdu_of_4_gib_is_not_read(start_node: StartNode) -> None:
    node = start_node()
    with socket.create_connection(("127.0.0.1", node.port)) as sock:
        sock.settimeout(20)
        sock.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFFF))
        with pytest.raises((ConnectionError, AssertionError)):
            assert sock.recv(1)
            sock.sendall(b"x" * 10_000_000)
    assert node.service.health()[0]


def test_silent_and_babbling_peers_hold_no_one_up(start_node: StartNode, slices: list[Dataset]) -> None:
    node = start_node(limits={"network_s": 1}, quiet_s=60)
    silent = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(3)]
    silent[1].sendall(struct.pack(">BBL", 1, 0, 100) + b"never the rest")
    silent[2].sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert send(node, slices[0]) == [0]
    wait_for(lambda: not node.service.receiver.associations()[()], "the associations to end", 20)
    for sock in silent:
        sock.close()


def test_logs_and_files_show_no_patient(start_node: StartNode, slices: list[Dataset], tmp_path: Path) -> None:
    node = start_node(f"file:{tmp_path}", quiet_s=0.5)
    send(node, *slices[:2], *slices[3:])
    slices[0].SeriesInstanceUID = ""
    node.wait("failed")
    words = repr(node.events) + " ".join(str(p) for p in node.service.spool.root.rglob("*"))
    for secret in (
        PATIENT,
        "Nobody",
        "nobody-1",
        "19000101",
        str(slices[0].StudyInstanceUID),
        str(slices[1].SOPInstanceUID),
    ):
        assert secret not in words


def test_port_in_use(segmenter: Segmenter, start_node: StartNode, tmp_path: Path) -> None:
    node = start_node()
    spool = Spool(tmp_path / "other")
    config = DicomConfig(port=node.port)
    with pytest.raises(UsageError, match=r"cannot be listened on: Address already in use; choose another --port"):
        Receiver(config, spool, node.service.metrics, lambda *_, **__: None)
    spool.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, and a certificate for 127.0.0.1 signed by it."""
    folder = tmp_path_factory.mktemp("tls")
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")

    def call(*args: str) -> None:
        subprocess.run([openssl, *args], cwd=folder, check=True, capture_output=True)

    (folder / "san").write_text("subjectAltName=IP:127.0.0.1")
    new = ("req", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    call(*new, "-x509", "-subj", "/CN=test ca", "-keyout", "ca.key", "-out", "ca.pem")
    call(*new, "-subj", "/CN=127.0.0.1", "-keyout", "node.key", "-out", "node.csr")
    call("x509", "-req", "-in", "node.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
         "-extfile", "san", "-out", "node.pem")  # fmt: skip
    return folder


def test_tls_with_dcmtk_in_both_directions(
    start_node: StartNode, certificates: Path, slices: list[Dataset], tmp_path: Path, storescp: Any
) -> None:
    key, cert, ca = (certificates / name for name in ("node.key", "node.pem", "ca.pem"))
    tls = {"cert": cert, "key": key, "ca": ca}
    own = ("+tls", str(key), str(cert), "+cf", str(ca))
    need("storescu", "dcmtk")
    pacs = storescp(None, *own)
    node = start_node(f"dicoms://PACS@127.0.0.1:{pacs.port}", tls=tls, quiet_s=0.5)
    save_slices(tmp_path / "series", slices)
    # A peer that never shakes hands does not hold up the others.
    with socket.create_connection(("127.0.0.1", node.port)):
        assert storescu(node.port, tmp_path / "series", options=own).returncode == 0
    assert node.wait("send")[0]["outcome"] == "sent"
    assert storescu(node.port, tmp_path / "series").returncode != 0  # without TLS
    anonymous = ("+tla", "+cf", str(ca))
    assert storescu(node.port, tmp_path / "series", options=anonymous).returncode != 0  # without a certificate
