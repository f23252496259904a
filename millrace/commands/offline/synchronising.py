# core
"""One learner, and models that follow it: each takes over the learner's weights at its own times.

::

    batches     b0   b1   b2 | b3   b4 | b5   b6   b7 | b8        | a local day begins
    never       S─────────────────────────────────────────►       S: synchronises, then scores up to its next S
    daily       S────────────S─────────S──────────────S───►
    hourly      S────────S───S────S────S────S─────────S───►
    every batch S────S───S───S────S────S────S────S────S───►

The learner does not depend on its followers, so one pass of learning serves all. Features do not depend on the model,
so no version is copied: when a model synchronises at batch b, the learner scores all rows up to that model's next S.
Models with equal spans share the scores.

Rows are scored in the pieces in which one model alone would score them, because sums of a matrix product may differ in
the last bit with its number of rows. So scores equal, to the bit, those of models that learn and score apart.

Batches are cut where a day begins and, if asked for, at each synchronisation. Without such a cut, a model synchronises
before the first batch that begins after its time.

One version scores all rows of one time, as in a replay, because the rows of a page are compared with each other. So a
batch ends where a time does. A time with more rows than a batch is learnt in several, without a synchronisation
between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from learner.ranker.interfaces import Learning
from millrace.basics.durations import MINUTE_MS, minutes_of
from millrace.basics.errors import SettingError
from millrace.commands.offline import epochs
from millrace.commands.offline.dataset import Dataset
from millrace.commands.offline.epochs import Scores, score

NEVER, DAILY, BATCH = "never", "daily", "batch"
SYNCS = (NEVER, DAILY, "hourly", "15min", "minute", BATCH)
"""How often a model synchronises, from the rarest to every micro-batch."""

_NAMED = {"hourly": 60, "minute": 1}
_DAY_MIN = 1440


def period_ms(sync: str) -> int | None:
    """The time between two synchronisations; None for ``never``, ``daily`` and ``batch``, which follow no clock. Raises
    SettingError if it is none of :data:`SYNCS`, nor a whole number of min or h that divides a day."""
    if sync in (NEVER, DAILY, BATCH):
        return None
    try:
        minutes = _NAMED.get(sync) or minutes_of(sync)
    except ValueError:
        minutes = 0
    if not minutes or _DAY_MIN % minutes or minutes == _DAY_MIN:
        raise SettingError(f"--sync '{sync}'", f"choose of {', '.join(SYNCS)}, or a part of a day such as 5min or 6h")
    return minutes * MINUTE_MS


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """Consecutive micro-batches over days of a log, and who synchronises before which. b batches."""

    bounds: NDArray[np.intp]  # (b + 1,) batch k holds rows bounds[k] to bounds[k + 1]
    starts: NDArray[np.intp]  # batches that begin a day, ascending, the first is 0
    syncs: Mapping[str, NDArray[np.intp]]  # batches before which each model synchronises, ascending, the first is 0

    @property
    def rows(self) -> slice:
        return slice(int(self.bounds[0]), int(self.bounds[-1]))

    def version(self, name: str) -> NDArray[np.intp]:
        """The batch at which the model that scores each batch synchronised last. (b,)"""
        syncs = self.syncs[name]
        found: NDArray[np.intp] = syncs[np.searchsorted(syncs, np.arange(len(self.bounds) - 1), side="right") - 1]
        return found

    def per_row(self, of_batch: NDArray[np.intp]) -> NDArray[np.intp]:
        """Spreads a figure of each batch (b,) over the batch's rows."""
        return np.repeat(of_batch, np.diff(self.bounds))

    def staleness_ms(self, name: str, ts_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """How much older than each row its model's newest learnt exposure is, (rows,). ``ts_ms`` (n,) are of the whole
        log."""
        newest = np.maximum(self.bounds[self.version(name)] - 1, 0)
        age: NDArray[np.int64] = ts_ms[self.rows] - ts_ms[self.per_row(newest)]
        return age


def sync_plan(
    days: Sequence[slice], ts_ms: NDArray[np.int64], syncs: Sequence[str], cut: Sequence[str], offset_ms: int
) -> SyncPlan:
    """The plan of consecutive days (rows).

    Args:
        ts_ms: time of each row of the log, ascending, (n,).
        cut: at whose times batches are cut; all are cut where a day begins.
        offset_ms: of local time: hours and minutes count from the local midnight.

    Raises:
        SettingError: unknown names.
    """
    ends: list[NDArray[np.intp]] = []
    starts: list[int] = []
    turns = {name: period_ms(name) for name in dict.fromkeys((*syncs, *cut))}
    for day in days:
        local = ts_ms[day] + offset_ms
        edges = [np.array([day.start, day.stop], np.intp)]
        periods = [turns[name] for name in cut]
        edges += [np.flatnonzero(np.diff(local // period)) + 1 + day.start for period in periods if period]
        pieces = np.unique(np.concatenate(edges))
        starts.append(sum(len(e) for e in ends))
        ends += [_batches(ts_ms, a, b) for a, b in pairwise(pieces.tolist())]
    bounds = np.concatenate([*ends, [days[-1].stop]]).astype(np.intp)
    first = np.array(starts, np.intp)
    # No model synchronises within a time. The first batch of all begins one, as far as these days are concerned.
    moments = np.union1d(first, np.flatnonzero(ts_ms[bounds[1:-1]] != ts_ms[bounds[1:-1] - 1]) + 1)
    found: dict[str, NDArray[np.intp]] = {}
    for name in syncs:
        period = turns[name]
        if name == BATCH:
            found[name] = moments
        elif name == NEVER:
            found[name] = first[:1]
        elif period is None:
            found[name] = first
        else:
            turn = (ts_ms[bounds[moments]] + offset_ms) // period
            found[name] = np.union1d(first, moments[1:][np.diff(turn) > 0])
    return SyncPlan(bounds, first, found)


def _batches(ts_ms: NDArray[np.int64], start: int, stop: int) -> NDArray[np.intp]:
    """The first rows of the batches of rows [start, stop), at most
    :data:`~millrace.commands.offline.epochs.BATCH_ROWS` each. A batch ends where a time does, unless all of it is
    of one time."""
    firsts = [start]
    while (full := firsts[-1] + epochs.BATCH_ROWS) < stop:
        began = int(np.searchsorted(ts_ms, ts_ms[full], side="left"))  # the time of the first row that does not fit
        firsts.append(began if began > firsts[-1] else full)
    return np.array(firsts, np.intp)


@dataclass(slots=True)
class SyncScores:
    """What the models scored. n rows of the plan."""

    scores: dict[str, Scores]  # (n,) by model
    at_start: dict[str, Scores]  # (n,) the same rows, scored at the start of their day with ``frozen``; may be empty
    learn_seconds: float
    score_seconds: dict[str, float]  # by model: what it alone would have scored for
    shared_seconds: float  # what scoring took, all together


def run_sync_plan(
    model: Learning,
    data: Dataset,
    num: NDArray[np.float32],
    plan: SyncPlan,
    *,
    frozen: NDArray[np.float32] | None = None,
    clock: Callable[[], float] = lambda: 0.0,
) -> SyncScores:
    """The scores of all models of a plan, by a trained ``model`` that learns the plan's rows.

    Args:
        num: (n, N) inputs to score and learn with.
        frozen: (n, N) inputs with windows as of the start of each day, for additional scores of the day at its start.
    """
    rows, batches = plan.rows, len(plan.bounds) - 1
    n = rows.stop - rows.start
    out = {name: np.empty(n, np.float32) for name in plan.syncs}
    at_start = {name: np.empty(n, np.float32) for name in plan.syncs} if frozen is not None else {}
    ends: dict[int, list[tuple[int, str]]] = {}  # batch -> (end of the version's rows, model)
    for name, syncs in plan.syncs.items():
        for at, until in zip(syncs.tolist(), [*syncs[1:].tolist(), batches], strict=True):
            ends.setdefault(at, []).append((int(plan.bounds[until]), name))
    days = [int(plan.bounds[b]) for b in plan.starts] + [rows.stop]
    alone, shared, learning = dict.fromkeys(plan.syncs, 0.0), 0.0, 0.0
    for b in range(batches):
        start, stop = int(plan.bounds[b]), int(plan.bounds[b + 1])
        for end in sorted({e for e, _ in ends.get(b, ())}):
            began = clock()
            p = _scored(model, data, num, start, end, days)
            spent = clock() - began
            shared += spent
            for until, name in ends[b]:
                if until == end:
                    out[name][start - rows.start : end - rows.start] = p
                    alone[name] += spent
        if frozen is not None and b in plan.starts:
            _at_start(model, data, frozen, plan, b, at_start)
        began = clock()
        model.learn(data.batch(slice(start, stop), num))
        learning += clock() - began
    return SyncScores(out, at_start, learning, alone, shared)


def _scored(
    model: Learning, data: Dataset, num: NDArray[np.float32], start: int, stop: int, days: Sequence[int]
) -> Scores:
    """Rows [start, stop), in pieces that end where a day does."""
    edges = [start, *[d for d in days if start < d < stop], stop]
    return np.concatenate([score(model, data, slice(a, b), num) for a, b in pairwise(edges)])


def _at_start(
    model: Learning, data: Dataset, frozen: NDArray[np.float32], plan: SyncPlan, b: int, out: Mapping[str, Scores]
) -> None:
    """The day that begins at batch b, or for a model that does not synchronise again all days, scored as of now."""
    first = plan.rows.start
    later = plan.starts[plan.starts > b]
    end = int(plan.bounds[later[0]]) if len(later) else plan.rows.stop
    p: Scores | None = None
    for name, syncs in plan.syncs.items():
        if b not in syncs:
            continue
        start = int(plan.bounds[b])
        if len(syncs) == 1:  # never again
            out[name][start - first :] = score(model, data, slice(start, plan.rows.stop), frozen)
            continue
        if p is None:
            p = score(model, data, slice(start, end), frozen)
        out[name][start - first : end - first] = p
