"""Counters and times of a service in Prometheus' text format, version 0.0.4."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "mednext_edge_"

Labels = tuple[tuple[str, str], ...]
# Seconds; a segmentation takes from tenths of a second to many minutes.
_BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """All figures of one service; every method may be called from any thread.

    Args:
        helps: name of each metric, without prefix, to its description; `_total` names are counters, `_seconds`
            histograms, the others gauges. Names that are not in here cannot be counted.
    """

    def __init__(self, helps: Mapping[str, str]) -> None:
        self._helps = dict(helps)
        self._lock = threading.Lock()
        self._values: dict[str, dict[Labels, float]] = {name: {} for name in helps}
        self._times: dict[str, list[float]] = {n: [0.0] * (len(_BOUNDS) + 2) for n in helps if n.endswith("_seconds")}
        self._gauges: dict[str, Callable[[], Mapping[Labels, float]]] = {}

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Add to a counter."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            self._values[name][key] = self._values[name].get(key, 0.0) + by

    def observe(self, name: str, seconds: float) -> None:
        """Add one time to a histogram."""
        with self._lock:
            times = self._times[name]
            for i, bound in enumerate(_BOUNDS):
                times[i] += seconds <= bound
            times[-2] += 1
            times[-1] += seconds

    def gauge(self, name: str, read: Callable[[], Mapping[Labels, float]]) -> None:
        """Let a gauge be read, by labels, whenever the metrics are."""
        if name not in self._helps:
            raise KeyError(name)
        self._gauges[name] = read

    def value(self, name: str, **labels: str) -> float:
        """A counter's present value."""
        with self._lock:
            return self._values[name].get(tuple(sorted(labels.items())), 0.0)

    def text(self) -> str:
        """Everything, as Prometheus reads it."""
        gauges = {name: dict(read()) for name, read in self._gauges.items()}
        lines: list[str] = []
        with self._lock:
            for name, words in self._helps.items():
                full = PREFIX + name
                if name in self._times:
                    lines += [f"# HELP {full} {words}", f"# TYPE {full} histogram", *self._histogram(name)]
                    continue
                kind = "counter" if name.endswith("_total") else "gauge"
                values = gauges.get(name, self._values[name]) or ({(): 0.0} if kind == "gauge" else {})
                lines += [f"# HELP {full} {words}", f"# TYPE {full} {kind}"]
                lines += [f"{full}{_labels(key)} {value:g}" for key, value in sorted(values.items())]
        return "\n".join(lines) + "\n"

    def _histogram(self, name: str) -> list[str]:
        full, times = PREFIX + name, self._times[name]
        rows = [f'{full}_bucket{{le="{bound:g}"}} {times[i]:g}' for i, bound in enumerate(_BOUNDS)]
        return [
            *rows,
            f'{full}_bucket{{le="+Inf"}} {times[-2]:g}',
            f"{full}_sum {times[-1]:g}",
            f"{full}_count {times[-2]:g}",
        ]


def _labels(key: Labels) -> str:
    def escaped(text: str) -> str:
        return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in key) + "}" if key else ""
