"""Prometheus' text, read back by Prometheus' own parser."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mednext_edge.serving.metrics import Metrics


def test_counters_gauges_and_histograms() -> None:
    metrics = Metrics({"seen_total": "Seen.", "waiting": "Waits.", "work_seconds": "Times.", "none_total": "Never."})
    metrics.count("seen_total", kind='a "quoted"\\word\n')
    metrics.count("seen_total", 2, kind="b")
    metrics.gauge("waiting", lambda: {(("state", "x"),): 3.0})
    for seconds in (0.2, 700.0):
        metrics.observe("work_seconds", seconds)
    families = {f.name: f for f in text_string_to_metric_families(metrics.text())}
    seen = {s.labels["kind"]: s.value for s in families["mednext_edge_seen"].samples}
    assert seen == {'a "quoted"\\word\n': 1, "b": 2}
    assert metrics.value("seen_total", kind="b") == 2
    assert [(s.labels, s.value) for s in families["mednext_edge_waiting"].samples] == [({"state": "x"}, 3)]
    buckets = {s.labels.get("le", s.name): s.value for s in families["mednext_edge_work_seconds"].samples}
    assert (buckets["0.1"], buckets["0.25"], buckets["600"], buckets["+Inf"]) == (0, 1, 1, 2)
    assert buckets["mednext_edge_work_seconds_sum"] == pytest.approx(700.2)
    assert families["mednext_edge_none"].samples == []


def test_names_that_nobody_described() -> None:
    metrics = Metrics({})
    with pytest.raises(KeyError):
        metrics.count("strange_total")
    with pytest.raises(KeyError):
        metrics.gauge("strange", dict)
