"""Accuracy, AUC and confusion against scikit-learn; a classifier's report and its gate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from mednext_edge.data.dataset import Case
from mednext_edge.data.volume import Volume
from mednext_edge.errors import DataError, UnknownNameError, UsageError
from mednext_edge.evaluation import classes
from mednext_edge.evaluation.classes import CLASS_METRICS, drop_interval
from mednext_edge.evaluation.gate import check_gate
from mednext_edge.evaluation.limits import Limits
from mednext_edge.evaluation.markdown import to_markdown
from mednext_edge.evaluation.metrics import check_metric, choose_metric
from mednext_edge.evaluation.report import Report
from mednext_edge.evaluation.validate import validate
from mednext_edge.runtime.session import Array, Session
from mednext_edge.task import Inference, ModelSpec, Normalization, Preprocessing, Task

from .reports import ENVIRONMENT
from .sessions import ReadSession

LABELS = {"a": 0, "b": 1, "c": 2}


class Classifier(Session):
    """Says the class that is nearest to the mean brightness, after `shift`."""

    provider, precision, patch = "reader 1.0", "fp32", None

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift
        spec = ModelSpec(
            kind="classification",
            family="mednext2d",
            variant="tiny",
            kernel_size=5,
            spatial_dims=2,
            in_channels=1,
            classes=3,
            parameters=1,
            config={},
        )
        self.task = Task(
            name="classes",
            model=spec,
            preprocessing=Preprocessing(crop_nonzero=False, normalization=(Normalization(scheme="none"),)),
            inference=Inference(patch=(4, 4)),
            labels=LABELS,
        )

    def _run(self, x: Array) -> Array:
        found: Array = -np.abs(x.mean((1, 2, 3)) + self.shift - np.arange(3, dtype=np.float32))[np.newaxis]
        return found

    def close(self) -> None:
        pass


def case(name: str, brightness: float, category: int | None) -> Case:
    return Case(name, lambda: Volume(np.full((1, 1, 6, 6), brightness, np.float32), np.eye(4)), category=category)


CASES = [case(f"case {i}", i % 3, i % 3) for i in range(9)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("number", [2, 4])
def test_against_scikit_learn(seed: int, number: int) -> None:
    generator = np.random.default_rng(seed)
    found = np.round(generator.dirichlet(np.ones(number), 40), 1)  # with ties
    found = found / found.sum(1, keepdims=True)
    reference = np.concatenate([np.arange(number), generator.integers(0, number, 40 - number)])
    assert classes.accuracy(found, reference) == sk.accuracy_score(reference, found.argmax(1))
    one_hot = np.eye(number)[reference]
    assert classes.auc(found, reference) == pytest.approx(sk.roc_auc_score(one_hot, found, average="macro"))
    counts = classes.confusion(found, reference)
    assert np.array_equal(counts, sk.confusion_matrix(reference, found.argmax(1), labels=range(number)))
    assert classes.sensitivity(counts) == pytest.approx(
        sk.recall_score(reference, found.argmax(1), average=None, labels=range(number))
    )
    assert classes.f1(counts) == pytest.approx(
        sk.f1_score(reference, found.argmax(1), average=None, labels=range(number))
    )


def test_what_does_not_exist_is_nan() -> None:
    found, reference = np.array([[0.9, 0.1, 0.0], [0.4, 0.6, 0.0]]), np.array([0, 0])
    assert math.isnan(classes.auc(found, reference))
    assert classes.accuracy(found, reference) == 0.5
    assert np.isnan(classes.sensitivity(classes.confusion(found, reference))[1:]).all()
    assert math.isnan(classes.accuracy(found[:0], reference[:0]))


def test_interval_holds_the_drop_and_needs_two_cases() -> None:
    generator = np.random.default_rng(0)
    reference = generator.integers(0, 2, 60)
    good = np.eye(2)[reference]
    bad = np.eye(2)[np.where(np.arange(60) < 12, 1 - reference, reference)]
    interval = drop_interval(CLASS_METRICS["accuracy"], good, bad, reference)
    assert interval is not None
    assert interval[0] < 0.2 < interval[1]
    assert drop_interval(CLASS_METRICS["accuracy"], good[:1], bad[:1], reference[:1]) is None


def test_report_of_a_classifier() -> None:
    report = validate(Classifier(), CASES, baseline=Classifier(0.2))
    found = report.classification
    assert found is not None
    assert found.exported is not None
    assert found.exported.metrics == {"accuracy": 1.0, "auc": 1.0}
    assert found.exported.confusion == ((3, 0, 0), (0, 3, 0), (0, 0, 3))
    assert (found.agreement, found.drop["accuracy"].mean, found.collapsed) == (1.0, 0.0, False)
    assert [c.found for c in report.classified] == ["a", "b", "c"] * 3
    assert all(sum(c.probabilities.values()) == pytest.approx(1) for c in report.classified)
    assert Report.model_validate_json(report.to_json()) == report
    gate = check_gate(report)
    assert (gate.status, gate.metric) == ("passed", "accuracy")
    text = to_markdown(report)
    assert "| accuracy | 1.0000 | 1.0000 |" in text
    assert "| b | 0 | 3 | 0 |" in text


def test_a_drop_and_a_collapse_fail_the_gate() -> None:
    worse = validate(Classifier(0.6), CASES, baseline=Classifier())  # one class too high, but for the last
    assert check_gate(worse).status == "failed"
    assert check_gate(worse, Limits(metric="auc", mean=1.0)).status == "passed"
    collapsed = validate(Classifier(9), CASES)
    assert collapsed.classification is not None
    assert collapsed.classification.collapsed
    assert check_gate(collapsed, Limits(mean=1.0)).reason == "the model finds one class in every case"


def test_without_references_there_is_agreement_alone() -> None:
    report = validate(Classifier(), [case("x", 1, None)], baseline=Classifier())
    assert report.classification is not None
    assert (report.classification.exported, report.classification.agreement) == (None, 1.0)
    assert check_gate(report).status == "not_run"


def test_without_cases_no_gate_is_decided_whatever_the_metric() -> None:
    for metric in (None, "accuracy", "iou"):
        found = check_gate(Report(environment=ENVIRONMENT), Limits(metric=metric))
        assert (found.status, found.metric) == ("not_run", metric or "dice")


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match="is of class 7"):
        validate(Classifier(), [case("x", 1, 7)])
    with pytest.raises(UsageError, match="the baseline"):
        validate(Classifier(), CASES, baseline=ReadSession(labels=LABELS))


def test_metrics_belong_to_a_kind() -> None:
    assert (choose_metric("segmentation", None), choose_metric("classification", None)) == ("dice", "accuracy")
    with pytest.raises(UnknownNameError, match="Known: accuracy, auc"):
        choose_metric("classification", "dice")
    check_metric("auc")
    check_metric(None)
    with pytest.raises(UnknownNameError, match="Did you mean `dice`"):
        check_metric("dise")
