"""From a scanner's C-STORE to a segmentation object in an archive, with dcmtk and Orthanc as peers."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pynetdicom
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydicom import Dataset
from pydicom.uid import JPEG2000Lossless

import mednext_edge as mx
from mednext_edge.data import dicom_seg
from mednext_edge.data.dicom import find_series, read_series
from mednext_edge.data.volume import write_labels
from mednext_edge.errors import IntegrityError
from mednext_edge.serving.dicom import service
from mednext_edge.serving.dicom.config import DicomConfig
from mednext_edge.serving.dicom.spool import Spool
from mednext_edge.serving.segmenter import Segmenter
from tests.data.dicom_series import dciodvfy, make_slices, on_grid, save_slices
from tests.serving.conftest import connects, free_port, need, storescu, wait_for

from .conftest import StartNode
from .test_receiver import send


@pytest.mark.parametrize("name", ["dicom_hippocampus", "dicom_mr_t1"])
def test_real_series_through_dcmtk(
    shared_data: Path, tmp_path: Path, bundle: Path, start_node: StartNode, storescp: Any, name: str
) -> None:
    pacs = storescp()
    opened = Segmenter(bundle, step=1.0)
    node = start_node(f"PACS@127.0.0.1:{pacs.port}", segmenter=opened, quiet_s=2)
    series = find_series(shared_data / name)
    if name == "dicom_mr_t1":  # 16 of its slices: they are large, and the network's patch is small
        thinned = tmp_path / "thinned"
        thinned.mkdir()
        for file in next(iter(series.values()))[24:40]:
            shutil.copy(file, thinned)
        series = find_series(thinned)
    done = storescu(node.port, *{file.parent for files in series.values() for file in files}, options=("+sp", "*.dcm"))
    assert done.returncode == 0, done.stderr
    node.wait("send", len(series))
    wait_for(lambda: node.service.spool.counts()["done"] == len(series), "the ledger")
    received = {str(highdicom.seg.segread(file).StudyInstanceUID): file for file in pacs.files}
    assert len(pacs.files) == len(series)
    with mx.open(bundle) as session:
        for files in series.values():
            image = read_series(files)
            labels = mx.predict(session, image, step=1.0)
            write_labels(tmp_path / "labels.nii.gz", labels, image)
            nifti = nib.load(tmp_path / "labels.nii.gz")
            file = received[str(image.sources[0].StudyInstanceUID)]
            assert dciodvfy(file) == []
            # The object's segments lie where the NIfTI prediction's lie, by the NIfTI file's own affine.
            found = on_grid(highdicom.seg.segread(file), nifti.affine, nifti.shape[::-1])
            np.testing.assert_array_equal(found, np.asarray(nifti.dataobj).T)


@dataclass
class Orthanc:
    """An Orthanc on loopback with DICOMweb."""

    dicom: int
    http: int

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/{path}", timeout=30) as answer:
            return json.load(answer)


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    program = need("Orthanc", "orthanc")
    plugins = [str(path) for path in Path("/usr/share/orthanc/plugins").glob("*DicomWeb*")]
    if not plugins:
        pytest.skip("no DICOMweb plugin (Debian package orthanc-dicomweb)")
    peer = Orthanc(free_port(), free_port())
    config = {
        "StorageDirectory": str(tmp_path / "orthanc"),
        "IndexDirectory": str(tmp_path / "orthanc"),
        "DicomPort": peer.dicom,
        "HttpPort": peer.http,
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": True,
        "Plugins": plugins,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(config))
    process = subprocess.Popen(
        [program, str(tmp_path / "orthanc.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: connects(peer.http) and connects(peer.dicom), "Orthanc")
    yield peer
    process.kill()
    process.wait()


def test_c_store_and_stow_to_orthanc(
    orthanc: Orthanc, start_node: StartNode, slices: list[Dataset], tmp_path: Path
) -> None:
    stow = f"http://127.0.0.1:{orthanc.http}/dicom-web/studies"
    node = start_node(f"ORTHANC@127.0.0.1:{orthanc.dicom}", stow, f"file:{tmp_path}")
    save_slices(tmp_path / "series", slices)
    assert storescu(node.port, tmp_path / "series").returncode == 0
    wait_for(lambda: node.service.spool.counts()["done"] == 1, "all destinations")
    assert {(e["destination"], e["outcome"]) for e in node.of("send")} == {
        (f"ORTHANC@127.0.0.1:{orthanc.dicom}", "sent"),
        (stow, "sent"),
        (f"file:{tmp_path}", "sent"),
    }
    (instance,) = orthanc.get("instances")  # one object, though it came twice
    tags = orthanc.get(f"instances/{instance}/simplified-tags")
    assert (tags["Modality"], tags["SegmentationType"], tags["PatientName"]) == ("SEG", "BINARY", "Nobody^Nowhere")
    (copy,) = tmp_path.glob("*.dcm")
    assert highdicom.seg.segread(copy).SOPInstanceUID == tags["SOPInstanceUID"] == copy.stem


def test_a_series_is_segmented_once_and_late_slices_make_a_new_object(
    start_node: StartNode, slices: list[Dataset], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    node = start_node(f"file:{tmp_path / 'out'}", quiet_s=0.5)
    save_slices(tmp_path / "early", slices[:4])
    save_slices(tmp_path / "late", slices[4:])
    assert storescu(node.port, tmp_path / "early").returncode == 0
    node.wait("send")
    assert storescu(node.port, tmp_path / "early").returncode == 0
    node.wait("series-repeated")
    assert storescu(node.port, tmp_path / "late").returncode == 0
    node.wait("send", 2)
    counts = [
        len(highdicom.seg.segread(f).ReferencedSeriesSequence[0].ReferencedInstanceSequence)
        for f in (tmp_path / "out").iterdir()
    ]
    assert sorted(counts) == [4, 6]


def test_a_series_waits_for_the_association_that_sends_it(
    start_node: StartNode, slices: list[Dataset], tmp_path: Path
) -> None:
    """A pause in the middle of an association makes no series of half the slices."""
    node = start_node(f"file:{tmp_path}", quiet_s=0.2)
    entity = pynetdicom.AE(ae_title="SCANNER")
    entity.add_requested_context(slices[0].SOPClassUID)
    association = entity.associate("127.0.0.1", node.port, ae_title="MEDNEXT")
    for ds in slices[:3]:
        assert association.send_c_store(ds).Status == 0
    time.sleep(1.5)
    assert not node.of("series-complete")
    for ds in slices[3:]:
        assert association.send_c_store(ds).Status == 0
    association.release()
    assert node.wait("series-complete")[0]["slices"] == 6
    wait_for(lambda: not node.service.receiver.held(), "the end of the association")


def test_an_expected_number_of_slices_waits_for_no_pause(
    start_node: StartNode, slices: list[Dataset], tmp_path: Path
) -> None:
    node = start_node(f"file:{tmp_path}", quiet_s=600, expect=6)
    save_slices(tmp_path / "series", slices)
    assert storescu(node.port, tmp_path / "series").returncode == 0
    node.wait("send")


def test_two_interleaved_series_are_two_objects(start_node: StartNode, slices: list[Dataset], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    node = start_node(f"file:{tmp_path / 'out'}")
    other = copy.deepcopy(slices)
    both = []
    for i, (a, b) in enumerate(zip(slices, other, strict=True)):
        b.SeriesInstanceUID, b.SOPInstanceUID = "1.2.3.4", f"1.2.3.4.{i}"
        b.file_meta.MediaStorageSOPInstanceUID = b.SOPInstanceUID
        both += [a, b]
    save_slices(tmp_path / "series", both)
    assert storescu(node.port, tmp_path / "series").returncode == 0
    node.wait("send", 2)
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_jpeg_2000_gives_the_labels_of_the_plain_series(start_node: StartNode, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 500, (6, 40, 48)).astype(np.int16)
    plain, compressed = make_slices(voxels), make_slices(voxels)
    for one in compressed:
        one.compress(JPEG2000Lossless, generate_instance_uid=False)
    node = start_node(f"file:{tmp_path}", quiet_s=0.5)
    assert send(node, *plain) == send(node, *compressed) == [0] * 6
    node.wait("send", 2)
    first, second = (highdicom.seg.segread(file) for file in tmp_path.glob("*.dcm"))
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.PixelData == second.PixelData


@pytest.mark.parametrize("kind", ["gap", "tilt", "orientation", "duplicate"])
def test_what_is_no_regular_volume_is_refused_by_name(
    start_node: StartNode, slices: list[Dataset], tmp_path: Path, kind: str
) -> None:
    node = start_node(f"file:{tmp_path}", quiet_s=0.5)
    series = slices[:2] + slices[3:] if kind == "gap" else slices
    for i, ds in enumerate(series):
        if kind == "tilt":
            ds.ImagePositionPatient[0] += i
        if kind == "orientation" and i == 3:
            ds.ImageOrientationPatient = [0, 1, 0, 0, 0, 1]
        if kind == "duplicate" and i == 3:
            ds.ImagePositionPatient = series[2].ImagePositionPatient
    save_slices(tmp_path / "series", series)
    assert storescu(node.port, tmp_path / "series").returncode == 0
    (failed,) = node.wait("failed")
    assert failed["kind"] == kind
    assert node.service.metrics.value("failed_total", kind=kind) == 1
    wait_for(lambda: node.service.spool.jobs("failed"), "the ledger")
    (job,) = node.service.spool.jobs("failed")
    assert (job.kind, job.reason) == (kind, failed["reason"])
    assert node.service.health()[0]


def test_a_node_that_does_not_run_yet_is_not_healthy(segmenter: Segmenter, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    node = service.DicomService(DicomConfig(port=0), segmenter, spool, [], lambda *args, **fields: None, http_port=0)
    good, words = node.health()
    assert (good, words["status"]) == (False, "starting")
    node.stop()
    node.run()
    assert node.health()[1]["status"] == "stopping"
    spool.close()


def test_health_and_metrics(start_node: StartNode, slices: list[Dataset], tmp_path: Path) -> None:
    node = start_node(f"file:{tmp_path}")
    save_slices(tmp_path / "series", slices)
    storescu(node.port, tmp_path / "series")
    node.wait("send")
    assert node.service.http is not None
    where = f"http://127.0.0.1:{node.service.http.port}"
    with urllib.request.urlopen(f"{where}/health", timeout=10) as answer:
        assert json.load(answer)["status"] == "ok"
    with urllib.request.urlopen(f"{where}/metrics", timeout=10) as answer:
        families = {f.name: f for f in text_string_to_metric_families(answer.read().decode())}
    samples = {(s.name, *s.labels.values()): s.value for family in families.values() for s in family.samples}
    assert samples["mednext_edge_instances_total",] == 6
    assert samples["mednext_edge_series_total", "queued"] == 1
    assert samples["mednext_edge_sent_total", f"file:{tmp_path}", "sent"] == 1
    assert samples["mednext_edge_segmentation_seconds_count",] == 1
    assert samples["mednext_edge_queue", "failed"] == 0
    assert families["mednext_edge_segmentation_seconds"].type == "histogram"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{where}/etc/passwd", timeout=10)


def test_a_bundle_that_changes_while_it_is_served_ends_the_service(
    bundle: Path, start_node: StartNode, slices: list[Dataset], tmp_path: Path
) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    opened = Segmenter(tmp_path / "bundle")
    node = start_node(f"file:{tmp_path}", segmenter=opened, quiet_s=0.5)
    weights = tmp_path / "bundle" / "model.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    save_slices(tmp_path / "series", slices)
    assert storescu(node.port, tmp_path / "series").returncode == 0
    node.thread.join(60)
    (error,) = node.errors
    assert isinstance(error, IntegrityError)
    assert node.service.spool.jobs("ready")[0].attempts == 0  # it waits for a sound bundle
    opened.close()


def test_a_full_disk_while_segmenting_delays_and_loses_nothing(
    start_node: StartNode, slices: list[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([True, True])
    real = os.fsync

    def full(handle: int) -> None:
        if next(failures, False):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    node = start_node(f"file:{tmp_path}", quiet_s=0.5)
    save_slices(tmp_path / "series", slices)
    assert storescu(node.port, tmp_path / "series").returncode == 0
    monkeypatch.setattr(service, "_FULL_PAUSE_S", 0.1)
    monkeypatch.setattr(dicom_seg.os, "fsync", full)
    node.wait("send")
    assert node.wait("disk-full")
    assert not node.of("failed")
