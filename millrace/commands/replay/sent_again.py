# core
"""The exposures of a log that are sent again, with final labels, for a loss within pages.

The stream's join does this live (stream/join/page_again.py). In a log a page is the rows of one page and time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from millrace.commands.replay.logfeatures import Labels, LogRows
from millrace.commands.replay.logsamples import KnownSamples
from millrace.contracts.samples import PAGE
from stream.join.page_again import drawn


def clicked_in_time(ts_ms: NDArray[np.int64], labels: Labels) -> NDArray[np.bool_]:
    """Which exposures of times ``ts_ms`` (n,) were clicked within the attribution window. (n,)"""
    clicked: NDArray[np.bool_] = labels.clicked & ~labels.corrects
    return clicked & (labels.acted_ms < ts_ms + labels.wait_ms) if labels.wait_ms else clicked


def with_pages_again(samples: KnownSamples, rows: LogRows, labels: Labels) -> KnownSamples:
    """The samples of rows under one policy, and those that are sent when the labels of their page are final."""
    clicked = clicked_in_time(rows.ts_ms, labels)
    order = np.lexsort((rows.slots(np.arange(rows.n)), rows.page, rows.ts_ms))
    page, ts_ms = rows.page[order], rows.ts_ms[order]
    ends = np.flatnonzero((page[1:] != page[:-1]) | (ts_ms[1:] != ts_ms[:-1])) + 1
    found = [np.empty(0, np.intp)]
    for mine in np.split(order, ends):
        hit = clicked[mine]
        if hit.any() and not hit.all():
            others = mine[~hit]
            (name,) = rows.requests(rows.page[mine[:1]])
            found += [mine[hit], others[drawn(name, len(others))]]
    row = np.concatenate(found)
    if not len(row):
        return samples
    policy = np.full(len(row), samples.policy[np.argmin(samples.kind)])
    outcomes = np.full((len(row), samples.outcomes.shape[1]), np.nan, np.float32)
    return samples.joined(KnownSamples.told_once(row, rows.ts_ms[row] + labels.wait_ms, PAGE, policy, outcomes))
