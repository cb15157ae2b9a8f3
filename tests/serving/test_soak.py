"""What `benchmarks/serving_soak.py` makes of answers; the soaks themselves are run there."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from benchmarks.serving.dicom import CALLED, TITLE, Archive, Modality
from benchmarks.serving.mrd import MrdClient, whole
from benchmarks.serving.outcome import DOUBLED, FAILED, LEAST, LOST, RIGHT, WARM, WRONG, judge, references, soak
from benchmarks.serving.process import serving
from tests.serving.conftest import need


def test_one_right_answer_is_right() -> None:
    assert judge([b"a"], b"a") == RIGHT
    assert judge([b"b"], b"a") == WRONG
    assert judge([], b"a") == LOST
    assert judge([b"a", b"a"], b"a") == DOUBLED


@pytest.mark.parametrize("found", [[[b"a"], [b"a"]], [[b"a"], []], [[b"a"], [b"b", b"c"]]])
def test_references_that_would_hide_a_mix_up(found: list[list[bytes]]) -> None:
    with pytest.raises(RuntimeError, match="1 different answers to 2 questions"):
        references(found)
    assert references([[b"a"], [b"b"]]) == [b"a", b"b"]


def test_slices_are_counted_by_volumes() -> None:
    assert whole([b"a", b"b", b"c", b"d"], 2) == [b"ab", b"cd"]
    assert whole([], 2) == []
    with pytest.raises(ValueError, match="3 slices"):
        whole([b"a", b"b", b"c"], 2)


def test_everything_that_was_sent_is_counted() -> None:
    held = iter([1000.0] * WARM + [float(n) for n in range(LEAST)])
    lock, seen = threading.Lock(), []

    def send(number: int) -> str:
        with lock:
            seen.append(number)
        if number % 10 == 9:
            raise ConnectionResetError("gone")
        return WRONG if number % 10 == 8 else RIGHT

    found = soak(send, LEAST, 3, lambda: next(held), lambda done, total: None)
    assert sorted(seen) == list(range(LEAST))
    assert found.outcomes == {RIGHT: 56, WRONG: 7, LOST: 0, DOUBLED: 0, FAILED: 7}
    assert found.failures == {"ConnectionResetError: gone": 7}
    assert (found.start_mb, found.end_mb, found.highest_mb, found.growth_mb) == (9.5, 29.5, 39, 20)
    assert found.course_mb == tuple(1.5 + 4 * part for part in range(10))
    with pytest.raises(ValueError, match=f"{LEAST} or more"):
        soak(send, LEAST - 1, 1, lambda: 0, lambda done, total: None)


@pytest.mark.slow
def test_a_service_of_each_kind(bundle: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "mrd", bundle) as service:
        assert MrdClient(service.port).send(3) == RIGHT
        assert service.resident_mb() > 50
    need("storescu", "dcmtk")
    archive = Archive()
    options = ("--spool", tmp_path / "spool", "--send-to", f"{TITLE}@127.0.0.1:{archive.port}", "--ae-title", CALLED)
    with serving(tmp_path, "dicom", bundle, *options, "--quiet", 0.5) as service:
        modality = Modality(service.port, archive)
        assert modality.send(1) == RIGHT
    with pytest.raises(ConnectionError, match=r"Association Request Failed|TCP"):
        modality.send(1)
    archive.close()
    assert archive.repeated == 0


def test_a_service_that_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"does not listen: .*is not a bundle"), serving(tmp_path, "mrd", tmp_path):
        pass
