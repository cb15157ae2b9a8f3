"""The number of threads, of engines that pretend to take time."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx
import pytest

from mednext_edge.environment import environment, machine_digest
from mednext_edge.errors import ExportError
from mednext_edge.export import tune_cache, tune_threads
from mednext_edge.export.targets import Job, silent
from mednext_edge.export.tune_cache import TuningCache
from mednext_edge.export.tune_threads import thread_counts
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.runtime.threads import ThreadTuning
from tests.export.pretended import Machine

HERE = environment().model_copy(update={"physical_cores": 8, "usable_cores": 16, "logical_cores": 16})


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_threads, "environment", lambda: HERE)


@pytest.fixture
def job(tiny_model: LoadedModel) -> Job:
    graph = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    return Job(tiny_model, graph, "fp32", (16, 16, 16))


def tune(machine: Machine, job: Job, folder: Path, seconds: float = 1000.0) -> ThreadTuning:
    return tune_threads.tune_threads(
        machine.target(), job, seconds=seconds, progress=silent, cache=TuningCache(folder), watch=machine.watch
    )


def by_threads(**times: float) -> Machine:
    """Times by number of threads, such as `n4=20`; the engine takes 8 by itself."""
    return Machine(lambda job: times[f"n{job.threads or 8}"])


@pytest.mark.parametrize(
    ("physical", "usable", "own", "expected"),
    [(8, 16, 8, (16, 4, 2, 1)), (6, 12, 6, (12, 8, 4, 2, 1)), (2, 2, 2, (1,)), (1, 1, 1, ()), (8, 3, 3, (2, 1))],
)
def test_what_is_tried(physical: int, usable: int, own: int, expected: tuple[int, ...]) -> None:
    """Powers of two, physical and logical cores, without what cannot be used and what the engine takes by itself."""
    here = HERE.model_copy(update={"physical_cores": physical, "usable_cores": usable})
    assert thread_counts(here, own) == expected
    assert thread_counts(here.model_copy(update={"physical_cores": None}), own)[-1:] == expected[-1:]


def test_the_fastest_is_chosen_and_every_median_is_there(job: Job, tmp_path: Path) -> None:
    machine = by_threads(n16=30, n8=20, n4=15, n2=12, n1=25)
    found = tune(machine, job, tmp_path)
    assert (found.own, found.chosen) == (8, 2)
    assert found.complete and found.patch == job.patch and found.machine == machine_digest(HERE)
    assert [(c.threads, c.against) for c in found.counts] == [(16, 8), (4, 8), (2, 4), (1, 2)]
    for count, (this, against) in zip(found.counts, [(30, 20), (15, 20), (12, 15), (25, 12)], strict=True):
        assert count.p50_ms == pytest.approx(this, rel=0.03) and count.against_ms == pytest.approx(against, rel=0.03)
        assert count.ratio is not None and count.ratio[0] == pytest.approx(this / against, rel=0.03)
        assert count.pairs >= tune_threads.RULES.first
    assert machine.most == 2, "no more than two engines are in memory"


def test_a_gain_within_the_noise_leaves_the_choice_to_the_engine(job: Job, tmp_path: Path) -> None:
    """4 threads are 2 % faster, less than counts; 2 seem 20 % faster on timings that vary by half."""
    assert tune(by_threads(n16=30, n8=20, n4=19.6, n2=30, n1=50), job, tmp_path / "a").chosen is None
    noisy = by_threads(n16=30, n8=20, n4=20, n2=16, n1=20)
    noisy.spread = 0.5
    found = tune(noisy, job, tmp_path / "b", seconds=2)
    assert found.chosen is None and all(c.ratio is None or c.ratio[0] < c.ratio[2] for c in found.counts)


def test_what_was_measured_is_kept_for_this_machine_and_graph(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tune(by_threads(n16=30, n8=20, n4=15, n2=30, n1=40), job, tmp_path)
    again = by_threads()
    assert tune(again, job, tmp_path) == first and not again.jobs, "nothing is measured twice"
    other = onnx.helper.make_node("Relu", ["a"], ["b"])
    graph = onnx.helper.make_model(onnx.helper.make_graph([other], "relu", [], []))
    changed = by_threads(n16=30, n8=20, n4=30, n2=30, n1=40)
    assert tune(changed, Job(job.model, graph, "fp32", job.patch), tmp_path).chosen is None and changed.jobs
    monkeypatch.setattr(tune_cache, "environment", lambda: HERE.model_copy(update={"cpu": "another"}))
    elsewhere = by_threads(n16=30, n8=20, n4=30, n2=30, n1=40)
    assert tune(elsewhere, job, tmp_path).chosen is None and elsewhere.jobs


def test_the_cache_of_another_machine_or_a_damaged_one_is_not_taken(
    job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = tune(by_threads(n16=30, n8=20, n4=15, n2=30, n1=40), job, tmp_path)
    (file,) = tmp_path.iterdir()
    # Copied from another machine under this one's name.
    file.write_text(first.model_copy(update={"key": "0" * 64, "machine": "1" * 64}).model_dump_json())
    slow = by_threads(n16=30, n8=20, n4=30, n2=30, n1=40)
    assert tune(slow, job, tmp_path).chosen is None and slow.jobs
    file.write_text('{"key": 1')
    with caplog.at_level(logging.WARNING):
        assert tune(by_threads(n16=30, n8=20, n4=15, n2=30, n1=40), job, tmp_path).chosen == 4
    assert "cannot be read" in caplog.text
    assert ThreadTuning.model_validate_json(file.read_bytes()).chosen == 4


def test_the_end_of_the_budget(job: Job, tmp_path: Path) -> None:
    nothing = tune(by_threads(n8=20), job, tmp_path, seconds=0)
    assert nothing.chosen is None and not nothing.complete
    assert [c.threads for c in nothing.counts] == [16, 4, 2, 1] and not any(c.ratio for c in nothing.counts)
    slow_to_open = by_threads(n16=30, n8=20, n4=5, n2=5, n1=5)
    slow_to_open.opening = 1.0
    some = tune(slow_to_open, job, tmp_path, seconds=1.5)
    assert [c.against is not None for c in some.counts] == [True, False, False, False]
    assert some.chosen is None and not some.complete
    assert not list(tmp_path.iterdir()), "half a measurement is not kept"


def test_an_engine_that_does_not_tell_its_threads(job: Job, tmp_path: Path) -> None:
    silent_engine = Machine(lambda job: 1.0, own=None)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="does not tell how many threads"):
        tune(silent_engine, job, tmp_path)
