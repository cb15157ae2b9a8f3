from __future__ import annotations

import json

import numpy as np
import pytest

import mednext_edge
from mednext_edge.data.dataset import Case
from mednext_edge.data.volume import Volume
from mednext_edge.errors import DataError, UsageError
from mednext_edge.evaluation.gate import check_gate
from mednext_edge.evaluation.limits import Limits
from mednext_edge.evaluation.report import Report
from mednext_edge.evaluation.validate import Compared, validate
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.runtime.torch_session import TorchSession

from .sessions import LABELS, ReadSession, block, case

CASES = [case("a", block()), case("b", block(5)), case("c", block(6))]


def without_half_of_one(x: np.ndarray) -> np.ndarray:
    """Label 1 only where the last coordinate is even: the patch starts at an even one."""
    keep = np.arange(x.shape[-1]) % 2 == 0
    return np.where((x == 1) & ~keep, 0, x)


def test_perfect_model() -> None:
    report = validate(ReadSession(precision="int8"), CASES, baseline=ReadSession())
    accuracy = report.accuracy
    assert accuracy is not None and accuracy.exported is not None and accuracy.drop is not None
    assert (accuracy.cases, accuracy.labelled, accuracy.collapsed) == (3, 3, False)
    assert accuracy.exported.dice_per_class == {"one": 1, "two": 1}
    assert accuracy.exported.nsd_mean == 1
    assert accuracy.exported.precision == "int8"
    assert accuracy.drop.dice_mean == 0
    assert accuracy.drop.ci95 == (0.0, 0.0)
    assert (accuracy.voxel_agreement, accuracy.voxel_agreement_foreground) == (1, 1)
    assert report.end_to_end is not None and report.end_to_end.case_s > 0
    assert report.peak_memory_mb is not None and report.peak_memory_mb > 10
    assert check_gate(report).passed


def test_known_drop() -> None:
    """One class is lost in one case of three: Dice and its drop follow by hand."""
    hidden = [case("a", block()), case("b", block(5)), case("c", block(6, value=1))]

    def blind_after_a(x: np.ndarray) -> np.ndarray:
        return np.where((x == 1) & (blind["on"]), 0, x)

    blind = {"on": False}

    def watch(compared: Compared) -> None:
        blind["on"] = compared.case == "a"

    report = validate(ReadSession(blind_after_a), hidden, baseline=ReadSession(), seen=watch)
    assert report.accuracy is not None and report.accuracy.drop is not None and report.accuracy.exported is not None
    assert report.accuracy.exported.dice_per_class == pytest.approx({"one": 2 / 3, "two": 1})
    assert report.accuracy.drop.dice_mean == pytest.approx(1 / 6)
    worst = report.accuracy.drop.worst_case
    assert worst is not None and (worst.case, worst.label, worst.drop) == ("b", "one", 1)
    assert [row.dice for row in report.per_case] == [{"one": 1, "two": 1}, {"one": 0, "two": 1}, {"one": 1, "two": 1}]
    # 64 of the 128 foreground voxels of one case differ.
    assert report.accuracy.voxel_agreement_foreground == pytest.approx((1 + 0.5 + 1) / 3)
    assert report.accuracy.voxel_agreement == pytest.approx(1 - 64 / (3 * 12 * 10 * 9))
    result = check_gate(report, Limits(mean=0.1))
    assert result.status == "failed"
    assert result.upper is not None and result.drop is not None and result.upper >= result.drop


def test_exported_is_measured_not_the_baseline() -> None:
    report = validate(ReadSession(without_half_of_one), CASES[:1], baseline=ReadSession())
    assert report.accuracy is not None
    assert report.accuracy.baseline is not None and report.accuracy.exported is not None
    assert report.accuracy.baseline.dice_mean == 1
    assert report.accuracy.exported.dice_per_class["one"] == pytest.approx(2 * 32 / (32 + 64), abs=0.05)


def test_one_case_has_no_interval() -> None:
    report = validate(ReadSession(without_half_of_one), CASES[:1], baseline=ReadSession())
    assert report.accuracy is not None and report.accuracy.drop is not None
    assert report.accuracy.drop.ci95 is None
    assert report.accuracy.drop.dice_mean is not None and report.accuracy.drop.dice_mean > 0


def test_spacing_of_the_image_counts() -> None:
    def shifted(x: np.ndarray) -> np.ndarray:
        return np.roll(x, 1, axis=-1)

    near, far = (
        validate(ReadSession(shifted), [case("a", block(), spacing=spacing)]).per_case[0].nsd for spacing in (1.0, 2.0)
    )
    assert near is not None and far is not None
    assert near["two"] is not None and far["two"] is not None and far["two"] < near["two"]


def test_collapse_fails_the_gate_even_without_a_drop() -> None:
    silent = ReadSession(np.zeros_like)
    report = validate(silent, CASES, baseline=ReadSession(np.zeros_like))
    assert report.accuracy is not None and report.accuracy.collapsed
    assert report.accuracy.drop is not None and report.accuracy.drop.dice_mean == 0
    assert check_gate(report, Limits(mean=1)).status == "failed"


def test_silence_on_empty_cases_is_no_collapse() -> None:
    empty = [case("a", 0 * block()), case("b", 0 * block())]
    report = validate(ReadSession(), empty, baseline=ReadSession())
    assert report.accuracy is not None and report.accuracy.exported is not None
    assert not report.accuracy.collapsed
    assert report.accuracy.exported.dice_mean is None
    assert check_gate(report).status == "not_run"


def test_structures_invented_in_empty_cases_fail_the_gate() -> None:
    report = validate(ReadSession(np.ones_like), [case("a", 0 * block())], baseline=ReadSession())
    assert check_gate(report, Limits(mean=1)).status == "failed"


def test_class_that_is_nowhere_is_left_out() -> None:
    labels = {**LABELS, "three": 3}
    report = validate(ReadSession(labels=labels), CASES, baseline=ReadSession(labels=labels))
    assert report.accuracy is not None and report.accuracy.exported is not None
    assert report.accuracy.exported.dice_per_class == {"one": 1, "two": 1, "three": None}
    assert report.accuracy.exported.dice_mean == 1


def test_without_baseline() -> None:
    report = validate(ReadSession(), CASES)
    assert report.accuracy is not None
    assert report.accuracy.baseline is None and report.accuracy.drop is None
    assert report.accuracy.voxel_agreement is None
    assert report.accuracy.exported is not None and report.accuracy.exported.dice_mean == 1
    assert check_gate(report).status == "not_run"


def test_without_labels() -> None:
    cases = [case("a", block(), labelled=False)]
    report = validate(ReadSession(without_half_of_one), cases, baseline=ReadSession())
    assert report.accuracy is not None
    assert (report.accuracy.labelled, report.accuracy.exported, report.accuracy.drop) == (0, None, None)
    assert report.accuracy.voxel_agreement is not None and report.accuracy.voxel_agreement < 1
    assert report.per_case[0].dice is None


def test_labels_of_some_cases_only() -> None:
    cases = [case("a", block(), labelled=False), case("b", block(5))]
    report = validate(ReadSession(without_half_of_one), cases, baseline=ReadSession())
    assert report.accuracy is not None and report.accuracy.drop is not None
    assert report.accuracy.labelled == 1
    worst = report.accuracy.drop.worst_case
    assert worst is not None and worst.case == "b"


def test_strange_reference_values() -> None:
    with pytest.raises(DataError, match=r"case odd: the reference holds the values \[7\]"):
        validate(ReadSession(), [case("odd", block(value=7))])


def test_reference_of_another_shape() -> None:
    image = Volume(np.zeros((1, 4, 4, 4), np.float32), np.eye(4))
    labels = Volume(np.zeros((4, 4, 5), np.uint8), np.eye(4))
    with pytest.raises(DataError, match="same grid"):
        validate(ReadSession(), [Case("odd", lambda: image, lambda: labels)])


def test_no_cases() -> None:
    with pytest.raises(DataError, match="no cases"):
        validate(ReadSession(), [])


def test_baseline_with_other_labels() -> None:
    with pytest.raises(UsageError, match="labels"):
        validate(ReadSession(), CASES, baseline=ReadSession(labels={"background": 0, "one": 1}))


def test_progress_ends_where_it_says() -> None:
    told: list[tuple[str, int, int]] = []
    validate(ReadSession(), CASES[:2], baseline=ReadSession(), progress=lambda *step: told.append(step))
    done = [step for _, step, _ in told]
    assert done == sorted(done)
    assert told[-1] == ("validate", 400, 400)
    assert len(set(done)) > 4, "a step a patch, not a case"


def test_every_case_is_seen() -> None:
    seen: list[Compared] = []
    validate(ReadSession(), CASES, seen=seen.append)
    assert [compared.case for compared in seen] == ["a", "b", "c"]
    assert all(compared.baseline is None for compared in seen)
    assert seen[0].reference is not None and (seen[0].exported == seen[0].reference).all()


def test_report_survives_json() -> None:
    report = validate(ReadSession(without_half_of_one), CASES, baseline=ReadSession())
    text = report.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert Report.model_validate_json(text) == report


def test_bundle_and_loaded_model_are_opened_and_closed(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verb of the package: paths and models in, a report out; sessions that were given stay open."""
    given = ReadSession()
    given.task = tiny_model.task
    closed: list[str] = []
    monkeypatch.setattr(TorchSession, "close", lambda self: closed.append("torch"))
    monkeypatch.setattr(ReadSession, "close", lambda self: closed.append("given"))
    report = mednext_edge.validate(given, CASES[:1], baseline=tiny_model)
    assert closed == ["torch"]
    assert report.accuracy is not None and report.accuracy.baseline is not None
    assert report.accuracy.baseline.provider.startswith("torch")
    with pytest.raises(UsageError, match="bundle"):
        mednext_edge.validate("no/such/bundle", CASES[:1])
