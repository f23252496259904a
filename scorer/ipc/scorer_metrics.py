# shell
"""The whole scorer's figures: the feeder's own metrics, and those of its workers, summed.

A worker sends its registry's values on request and at its end. Counters and histograms are summed over the feeder, the
workers and ended workers. Gauges are the feeder's. A killed worker loses its counts since the last request, a second at
most.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics_core import Metric

Labels = tuple[tuple[str, str], ...]
Values = dict[tuple[str, str, Labels], float]
"""By metric, sample and labels."""

_SUMMED = ("counter", "histogram", "summary")


def metric_samples(registry: CollectorRegistry = REGISTRY) -> list[Any]:
    """This process's figures, for a message: metric, sample, labels, value."""
    out = []
    for metric in registry.collect():
        if metric.name.startswith("millrace_") and metric.type in _SUMMED:
            out += [
                [metric.name, s.name, sorted(s.labels.items()), s.value]
                for s in metric.samples
                if not s.name.endswith("_created")  # a time, which is no sum of anything
            ]
    return out


def values_of(message: Iterable[Any]) -> Values:
    """The inverse of :func:`metric_samples`."""
    return {(name, sample, tuple((k, v) for k, v in labels)): value for name, sample, labels, value in message}


class Sums:
    """A collector of the feeder's registry with the workers' figures added. Any thread may call it."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry
        self._ended: Values = {}
        self._running: dict[int, Values] = {}  # by worker
        self._lock = threading.Lock()

    def update(self, worker: int, values: Values) -> None:
        with self._lock:
            self._running[worker] = values

    def ended(self, worker: int) -> None:
        with self._lock:
            for place, value in self._running.pop(worker, {}).items():
                self._ended[place] = self._ended.get(place, 0.0) + value

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            counted: Values = {}
            for values in (self._ended, *self._running.values()):
                for place, value in values.items():
                    counted[place] = counted.get(place, 0.0) + value
        for metric in self._registry.collect():
            yield _with(metric, {p: v for p, v in counted.items() if p[0] == metric.name})

    def total(self, metric: str) -> dict[Labels, float]:
        """The summed samples ``metric``_total of a counter, by label."""
        return {
            tuple(sorted(s.labels.items())): s.value
            for m in self.collect()
            if m.name == metric
            for s in m.samples
            if s.name == f"{metric}_total"
        }


def _with(metric: Metric, counted: Values) -> Metric:
    if not counted:
        return metric
    out = Metric(metric.name, metric.documentation, metric.type, metric.unit)
    for sample in metric.samples:
        place = (metric.name, sample.name, tuple(sorted(sample.labels.items())))
        more = counted.pop(place, 0.0)
        out.add_sample(sample.name, dict(sample.labels), sample.value + more)
    for (_, name, labels), value in counted.items():
        out.add_sample(name, dict(labels), value)
    return out
