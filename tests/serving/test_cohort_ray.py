"""A cohort on a Ray cluster of two workers, one of which is lost."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

import mednext_edge as mx
from mednext_edge.data.dataset import Case, list_images
from mednext_edge.data.volume import Volume
from mednext_edge.errors import TargetUnavailableError
from mednext_edge.runtime.session import Session
from mednext_edge.serving.cohort import Settings
from mednext_edge.serving.cohort_ray import Entry, run_on_ray

CASES = 6


def open_bundle(bundle: Path, threads: int) -> Session:
    return mx.open(bundle, threads=threads)


def slowly(image: Any) -> Volume:
    """A case that takes long enough for a worker to be lost in the middle of it."""
    time.sleep(1)
    found = image()
    assert isinstance(found, Volume)
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Cluster, list[Any]]]:
    """A head without processors, and two workers with one each."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_worker_niceness", "0")  # by default workers give way to everything else on the machine
    node = {"object_store_memory": 100 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **node})
    workers = [made.add_node(num_cpus=1, **node) for _ in range(2)]
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made, workers
    ray.shutdown()
    made.shutdown()
    patch.undo()


def test_two_workers_and_the_loss_of_one(cluster: tuple[Cluster, list[Any]], bundle: Path, tmp_path: Path) -> None:
    made, workers = cluster
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(CASES):
        voxels = rng.normal(size=(17, 18, 19)).astype(np.float32)
        voxels[0, 0, 0] = np.nan if i == 3 else 0
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "images" / f"case{i}.nii")
    cases = [Case(c.name, partial(slowly, c.image)) for c in list_images(tmp_path / "images")]
    out = tmp_path / "labels"
    out.mkdir()
    settings = Settings(out=out, mirror=False, digest="", version="0")
    results = []
    lost = threading.Thread(target=lambda: made.remove_node(workers[0], allow_graceful=False))
    for result in run_on_ray(made.address, partial(open_bundle, bundle), settings, cases, tmp_path / "ledger.jsonl"):
        results.append(result)
        if len(results) == 2:
            lost.start()
    lost.join()
    assert sorted(r.case for r in results) == sorted(c.name for c in cases)
    failed = {r.case: r.error for r in results if r.error is not None}
    assert list(failed) == ["case3"] and "NaN" in str(failed["case3"])
    with mx.open(bundle) as session:
        for case in list_images(tmp_path / "images"):
            if case.name not in failed:
                labels = np.asarray(nib.load(out / f"{case.name}.nii.gz").dataobj).T
                np.testing.assert_array_equal(labels, mx.predict(session, case.image()))
    entries = [Entry.model_validate_json(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [entry.result for entry in entries] == results


def test_no_cluster_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: Path) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refuses(**_: object) -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(ray, "init", refuses)
    settings = Settings(out=tmp_path, digest="", version="0")
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        listening = somebody.getsockname()[1]
        for address in (f"127.0.0.1:{listening}", f"ray://localhost:{listening}", "auto"):
            with pytest.raises(TargetUnavailableError, match=r"found no Ray cluster at .*nobody answers"):
                list(run_on_ray(address, partial(open_bundle, bundle), settings, [], tmp_path / "ledger"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "host.invalid:6379", "a:99999"])
def test_nobody_listens_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: Path, address: str) -> None:
    """Ray is not asked, which would try for minutes."""
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))
    settings = Settings(out=tmp_path, digest="", version="0")
    with pytest.raises(TargetUnavailableError, match=r"found no Ray cluster at .*`ray start --head`"):
        list(run_on_ray(address, partial(open_bundle, bundle), settings, [], tmp_path / "ledger"))
