# shell
"""A Prometheus histogram that takes many equal values in one step: traced clicks come by the thousand, with counts.

The client's own histogram takes some microseconds a value.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString

TIMES_S = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60, 300)
"""Buckets (s) for delays of a click: fine around the usual delays of a stage, up to an outage."""


class TimesHistogram:
    """Counts values in buckets, by one label (None: no label). Any thread may call it. ``values`` of the label exist
    from the start. ``bounds`` are upper bounds, ascending; a bucket without one follows. With ``registry`` None only
    :meth:`collect` shows it."""

    def __init__(
        self,
        name: str,
        text: str,
        label: str | None = None,
        values: Sequence[str] = ("",),
        bounds: Sequence[float] = TIMES_S,
        registry: CollectorRegistry | None = REGISTRY,
    ) -> None:
        self._name, self._text, self._label = name, text, label
        self._bounds = np.asarray(bounds, np.float64)
        self._upper = [*map(floatToGoString, bounds), "+Inf"]
        self._counts = {value: np.zeros(len(bounds) + 1, np.int64) for value in values}
        self._sums = dict.fromkeys(values, 0.0)
        self._lock = threading.Lock()
        if registry is not None:
            registry.register(self)

    def observe(self, values: ArrayLike, counts: ArrayLike = 1, label: str = "") -> None:
        """Takes ``values`` (n,), each ``counts`` times (n,) or one count for all."""
        found, many = np.broadcast_arrays(np.atleast_1d(np.asarray(values, np.float64)), np.asarray(counts, np.int64))
        places = np.searchsorted(self._bounds, found, side="left")  # a value equal to a bound is below it
        with self._lock:
            np.add.at(self._counts[label], places, many)
            self._sums[label] += float(found @ many)

    def collect(self) -> Iterator[Any]:
        family = HistogramMetricFamily(self._name, self._text, labels=[self._label] if self._label else [])
        with self._lock:
            for value, counts in self._counts.items():
                buckets = list(zip(self._upper, np.cumsum(counts).tolist(), strict=True))
                family.add_metric([value] if self._label else [], buckets, self._sums[value])
        yield family


CLICK_STAGE = TimesHistogram(
    "millrace_click_stage_seconds",
    "Time that clicks took for a stage of their way.",
    "stage",
    ("joined", "learnt", "published", "applied"),
)
"""Each role observes the stages that end with it::

    click ──joined──► sample ──learnt──► weights ──published──► delta ──applied──► served
           (stream)           (learner)           (learner)             (scorer)
"""
