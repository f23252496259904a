# shell
"""Latencies of open-loop runs: percentiles, what something costs, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.tools.openloop import Outcome

Ms = NDArray[np.float64]
FAILED_MS = 10_000.0  # what a request counts for that had no answer, or another than was asked for
CHUNK_S = 1.0  # requests of so many seconds are drawn together: those of one moment wait for the same thing
DRAWS = 1000


def latencies_ms(outcome: Outcome) -> Ms:
    """From the intended time of each request to its answer; :data:`FAILED_MS` for one that failed. (n,)"""
    done = np.array([np.nan if at is None else at for at in outcome.done_s])
    spent = 1000.0 * (done - np.array(outcome.intended_s))
    return np.where(np.array(outcome.whole, np.bool_), spent, FAILED_MS)


def percentile(ms: Ms, share: float) -> float:
    """The smallest latency that at least ``share`` of the requests kept to. NaN of none.

    >>> percentile(np.array([1.0, 2.0, 3.0, 4.0]), 0.5)
    2.0
    """
    if not len(ms):
        return float("nan")
    return float(np.sort(ms)[max(0, int(np.ceil(share * len(ms))) - 1)])


def chunks(at_s: Sequence[float] | Ms, ms: Ms) -> list[Ms]:
    """Latencies of requests by the second in which they were due, seconds without one left out."""
    numbers = (np.asarray(at_s) // CHUNK_S).astype(np.int64)
    return [ms[numbers == number] for number in np.unique(numbers)]


def cost_ms(with_it: Sequence[Ms], without: Sequence[Ms], share: float, seed: int = 0) -> tuple[float, float, float]:
    """By how many milliseconds answers come later *with* something than *without*, at the percentile ``share``, and the
    bounds of the 95% interval: a bootstrap's over seconds (Efron, 1979)."""
    rng = np.random.default_rng(seed)

    def at(parts: Sequence[Ms]) -> float:
        return percentile(np.concatenate(parts), share)

    def drawn(parts: Sequence[Ms]) -> float:
        return at([parts[i] for i in rng.integers(0, len(parts), len(parts))])

    found = [drawn(with_it) - drawn(without) for _ in range(DRAWS)]
    low, high = np.percentile(found, [2.5, 97.5])
    return at(with_it) - at(without), float(low), float(high)
