"""The queue on disk: every step, repeats, late slices, and a kill after each rename."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from mednext_edge.errors import UsageError
from mednext_edge.serving.dicom.spool import JOB, SLICES, Full, Job, Spool, digest


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def add(spool: Spool, instance: str, series: str = "1.2.3", content: bytes = b"x", **limits: int) -> str:
    file = spool.temporary()
    file.write_bytes(content)
    return spool.add(file, "1.2", series, instance, limits.get("slices", 99), limits.get("open_series", 99))


def complete(spool: Spool, *instances: str, series: str = "1.2.3") -> Job | None:
    for instance in instances:
        key = add(spool, instance, series)
    return spool.complete(key)


def reopened(spool: Spool) -> Spool:
    spool.close()
    return Spool(spool.root)


def test_a_series_goes_its_way(spool: Spool) -> None:
    job = complete(spool, "1", "2")
    assert job is not None
    assert job.instances == tuple(sorted((digest("1"), digest("2"))))
    assert spool.jobs("ready") == [job]
    spool.save("ready", job.model_copy(update={"attempts": 1}))
    spool.move(job, "ready", "outbox")
    spool.move(job, "outbox", "done")
    assert spool.counts() == {"incoming": 0, "ready": 0, "outbox": 0, "done": 1, "failed": 0}
    assert spool.jobs("done")[0].attempts == 1


def test_file_names_say_nothing(spool: Spool) -> None:
    complete(spool, "1.2.826.77", series="1.2.826.55")
    names = " ".join(str(path) for path in spool.root.rglob("*"))
    assert "1.2" not in names and "55" not in names.split(str(spool.root))[0]


def test_only_its_owner_may_look(spool: Spool) -> None:
    assert all((spool.root / name).stat().st_mode & 0o077 == 0 for name in ("incoming", "ready", "done", "tmp"))


def test_two_series_at_once_stay_apart(spool: Spool) -> None:
    for i in range(4):
        add(spool, f"{i}", series=f"1.2.{i % 2}")
    assert sorted(spool.series().values()) == [2, 2]


def test_when_a_series_is_complete(spool: Spool) -> None:
    key = add(spool, "1")
    assert spool.due(60, None) == spool.due(60, 2) == []
    assert spool.due(60, 1) == spool.due(0, None) == [key]
    slices = spool.root / "incoming" / key / SLICES
    os.utime(slices, (time.time() - 100,) * 2)
    assert spool.due(60, None) == spool.due(60, None, {"another"}, 200) == spool.due(60, None, {key}, 90) == [key]
    assert spool.due(60, None, {key}, 200) == []  # its sender is still there
    assert spool.due(60, 1, {key}, 200) == [key]
    os.utime(slices, (time.time() + 1000,) * 2)  # a clock that was set back
    assert spool.due(60, None) == [key]


def test_a_series_whose_folder_is_being_made_is_not_complete(spool: Spool) -> None:
    (spool.root / "incoming" / "begun").mkdir()
    assert spool.due(0, None) == spool.due(0, 1) == []
    assert spool.series() == {"begun": 0}


def test_the_same_slices_again_are_no_second_job(spool: Spool) -> None:
    job = complete(spool, "1", "2")
    assert job is not None
    for state in ("ready", "outbox", "done"):
        if state != "ready":
            spool.move(job, "ready" if state == "outbox" else "outbox", state)
        assert complete(spool, "1", "2") is None
        assert complete(spool, "2") is None  # a part of it, sent again
        assert spool.counts()["incoming"] == 0
        assert len(list(spool.root.glob("*/*/job.json"))) == 1


def test_late_slices_are_joined_with_the_early_ones(spool: Spool) -> None:
    first = complete(spool, "1", "2")
    assert first is not None
    spool.move(first, "ready", "outbox")
    second = complete(spool, "3")
    assert second is not None
    assert len(second.instances) == 3
    assert (first.name.rpartition(".")[2], second.name.rpartition(".")[2]) == ("1", "2")
    assert complete(spool, "3") is None
    shutil.rmtree(spool.folder("outbox", first))
    assert len(list((spool.folder("ready", second) / SLICES).iterdir())) == 3


def test_what_failed_may_be_sent_again(spool: Spool) -> None:
    job = complete(spool, "1")
    assert job is not None
    spool.move(job, "ready", "failed")
    assert complete(spool, "1") is not None


def test_an_instance_sent_twice_is_the_later_one(spool: Spool) -> None:
    add(spool, "1", content=b"old")
    key = add(spool, "1", content=b"new")
    (file,) = (spool.root / "incoming" / key / SLICES).iterdir()
    assert file.read_bytes() == b"new"


def test_limits(spool: Spool) -> None:
    add(spool, "1")
    add(spool, "1", slices=1)
    with pytest.raises(Full, match="slices"):
        add(spool, "2", slices=1)
    with pytest.raises(Full, match="series"):
        add(spool, "2", series="other", open_series=1)


def test_purge(spool: Spool) -> None:
    jobs = [complete(spool, "1", series=f"1.{i}") for i in range(3)]
    for job, state in zip(jobs, ("done", "failed", "outbox"), strict=True):
        assert job is not None
        spool.move(job, "ready", state)  # type: ignore[arg-type]
    assert spool.purge(3600) == 0
    assert spool.purge(-1) == 2
    assert spool.counts() == {"incoming": 0, "ready": 0, "outbox": 1, "done": 0, "failed": 0}
    assert not list((spool.root / "tmp").iterdir())


def test_one_service_a_spool(spool: Spool) -> None:
    with pytest.raises(UsageError, match="runs"):
        Spool(spool.root)
    spool.close()
    Spool(spool.root).close()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="cannot be written"):
        Spool(tmp_path / "file")


def test_half_written_files_are_cleared_at_the_start(spool: Spool) -> None:
    spool.temporary().write_bytes(b"half")
    key = add(spool, "1")
    os.utime(spool.root / "incoming" / key / SLICES, (0, 0))
    again = reopened(spool)
    assert not list((again.root / "tmp").iterdir())
    assert again.due(60, None) == []  # its sender has a full pause to go on


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("step", range(30))
def test_a_kill_between_any_two_steps_loses_and_doubles_nothing(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The process ends before the n-th rename, link or removal; the next one goes on."""
    left = step

    def work(queue: Spool, first: bool) -> None:
        if first:
            complete(queue, "1", "2")
        else:  # the sender had no answer, and sends all again
            complete(queue, "1", "2", "3")
        for job in queue.jobs("ready"):
            (queue.folder("ready", job) / "result.dcm").write_bytes(b"r")
            queue.move(job, "ready", "outbox")
        for job in queue.jobs("outbox"):
            queue.save("outbox", job.model_copy(update={"sent": ("pacs",)}))
            queue.move(job, "outbox", "done")

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "link"):
            original = getattr(os, name)

            def call(*args: object, _original: object = original, **kwargs: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    raise _Killed
                assert callable(_original)
                return _original(*args, **kwargs)

            patch.setattr(os, name, call)
        try:
            work(spool, True)
            work(spool, False)
        except _Killed:
            pass
    again = reopened(spool)
    work(again, False)
    done = again.jobs("done")
    assert [len(job.instances) for job in done][-1] == 3
    assert len({job.instances for job in done}) == len(done)
    assert again.counts() == {"incoming": 0, "ready": 0, "outbox": 0, "done": len(done), "failed": 0}
    assert all(job.sent == ("pacs",) for job in done)


def test_a_job_of_another_version_is_named(spool: Spool) -> None:
    job = complete(spool, "1")
    assert job is not None
    (spool.folder("ready", job) / JOB).write_text('{"name": 1}')
    with pytest.raises(UsageError, match="by hand"):
        spool.jobs("ready")
