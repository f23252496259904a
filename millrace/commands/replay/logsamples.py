# core
"""When a log's labels become known under a label policy: the samples of a log, in the order in which they come.

The stream's join does this live, message by message (stream/join/join.py). A log is in order and complete, so a few
array operations suffice here. In a log without action times every label is known at its exposure, under any policy.

Outcomes are told one time each (:class:`~millrace.contracts.logforms.OutcomeRule` says when one is known)::

    known by then      with the exposure's first label; one on clicks with the click's
    known later        by a sample of its own, of the kind OUTCOME
    told by age        by such samples, if its own policy says so (millrace/labels/tellings.py)
    not defined        never: without a click, or where the log does not know
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from learner.ranker.within_page import page_end
from millrace.commands.replay.logfeatures import EventOutcome, Labels, LogRows
from millrace.contracts.events import CLICK, EXPOSURE
from millrace.contracts.samples import CORRECTION, NEGATIVE, OUTCOME, PAGE, POSITIVE, SampleBatch
from millrace.contracts.settings import Settings
from millrace.labels import WITH_EXPOSURE, LabelPolicy, Promise, Traffic, Waits, is_early, policy_named
from millrace.labels.tellings import ages_ms, tell

_PAGE_ROWS = 64  # looked at together
_EXPOSED = 1 << EXPOSURE  # the actions of a sample, as bits
_CLICKED = _EXPOSED | 1 << CLICK


class ReplayModel(Protocol):
    """Scores a log's exposures and learns its samples: an :class:`~learner.ranker.model.OnlineModel`, or a stand-in
    for one."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]: ...

    def learn(self, batch: SampleBatch) -> object: ...


class ReplayObserver(Protocol):
    """Watches a run of a log: it sees what the model is given, and changes none of it.

    A run calls from one thread, in the order of event time: :meth:`scored` for each exposure before it can be learnt,
    and :meth:`learnt` after each micro-batch. Arrays are the run's own, and are valid during the call.
    """

    def scored(
        self, rows: NDArray[np.intp], cat: NDArray[np.int64], num: NDArray[np.float32], p: NDArray[np.float32]
    ) -> None:
        """Takes rows (b,) of the log, scored ``p`` (b,) from cat (b, F) and num (b, N), bias columns hidden."""

    def learnt(self, samples: KnownSamples, part: slice, batch: SampleBatch) -> None:
        """The model has learnt ``batch``, which is ``samples[part]``."""


def learns_by_page(model: ReplayModel) -> bool:
    """Whether micro-batches for this model must not cut a page."""
    return bool(getattr(model, "by_page", False))


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """The settings that say when labels are learnt. The attribution window is the log's own, in its schema."""

    policy: str | None  # None: every label at its exposure
    observation_ms: int
    by_page: bool = False  # whether there is a loss within pages: they are sent again, and no micro-batch cuts them

    @classmethod
    def of(cls, settings: Settings) -> LabelSettings:
        return cls(settings.label_policy, round(settings.observation_seconds * 1000))

    @property
    def named(self) -> LabelPolicy | None:
        """Raises SettingError where there is no policy of that name."""
        return None if self.policy is None else policy_named(self.policy)


@dataclass(frozen=True, slots=True)
class KnownSamples:
    """The samples, in the order in which they become known. S samples: one an exposure, two if its click was late, more
    for outcomes that become known later. K outcomes."""

    row: NDArray[np.intp]  # (S,) row of the log
    known_ms: NDArray[np.int64]  # (S,) ascending
    kind: NDArray[np.uint8]  # (S,)
    policy: NDArray[np.uint8]  # (S,) code
    outcomes: NDArray[np.float32]  # (S, K) those that it tells, else NaN
    telling: NDArray[np.uint8]  # (S,) 0: told one time

    @classmethod
    def none(cls, outcomes: int) -> KnownSamples:
        row, small = np.empty(0, np.intp), np.empty(0, np.uint8)
        return cls(row, np.empty(0, np.int64), small, small, np.empty((0, outcomes), np.float32), small)

    @classmethod
    def told_once(
        cls,
        row: NDArray[np.intp],
        known_ms: NDArray[np.int64],
        kind: NDArray[np.uint8] | int,
        policy: NDArray[np.uint8],
        outcomes: NDArray[np.float32],
    ) -> KnownSamples:
        kinds = np.broadcast_to(np.uint8(kind), len(row))
        return cls(row, known_ms, kinds, policy, outcomes, np.zeros(len(row), np.uint8))

    @classmethod
    def by_age(cls, one: EventOutcome, outcomes: int) -> KnownSamples:
        """The tellings of an outcome that is told by age, one of ``outcomes``, age by age."""
        rows = np.flatnonzero(one.defined)
        base_ms, came_ms, back_ms = (a[rows] for a in (one.base_ms, one.came_ms, one.back_ms))
        turn = one.turns[rows]
        stands, parts = np.zeros(len(rows), np.uint8), [cls.none(outcomes)]
        ages = ages_ms(one.policy, one.within_ms)
        for number, age_ms in enumerate(ages, 1):
            due_ms = base_ms + age_ms
            has_turn = (turn <= number) | (number == len(ages))
            value, stands = tell(stands, (came_ms < due_ms) & (back_ms >= due_ms), has_turn)
            told = np.flatnonzero((due_ms <= one.ends_ms) & np.isfinite(value))
            values = np.full((len(told), outcomes), np.nan, np.float32)
            values[:, one.column] = value[told]
            kind, policy, telling = (np.full(len(told), v, np.uint8) for v in (OUTCOME, one.policy.code, number))
            parts.append(cls(rows[told], due_ms[told], kind, policy, values, telling))
        columns = (np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls))
        return cls(*columns)

    def take(self, which: NDArray[Any] | slice) -> KnownSamples:
        return KnownSamples(*(getattr(self, field.name)[which] for field in fields(self)))

    def joined(self, other: KnownSamples) -> KnownSamples:
        """Both, in order: of one time first labels, then corrections, then what is sent again, by row."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        both = KnownSamples(*(np.concatenate(pair) for pair in pairs))
        return both.take(np.lexsort((both.row, np.maximum(both.kind, POSITIVE), both.known_ms)))

    @classmethod
    def of(
        cls,
        ts_ms: NDArray[np.int64],
        labels: Labels,
        policy: LabelPolicy | None,
        observation_ms: int = 10_000,
        traffic: Traffic | None = None,
    ) -> KnownSamples:
        """The samples that a policy makes of exposures.

        Args:
            ts_ms: times of the exposures, ascending, (n,).
            labels: whether and when they were clicked; their ``wait_ms`` is the attribution window.
            policy: None: every label is known at its exposure. No policy can do that; it is the reference.
            traffic: the state after earlier exposures, where a log is read stretch by stretch; it is updated.
        """
        n = len(ts_ms)
        zeros = np.zeros(n, np.int64)
        promise, delay = Promise(np.full(n, WITH_EXPOSURE), zeros, zeros, zeros), zeros
        clicked = early = labels.clicked & ~labels.corrects
        if policy is not None and labels.wait_ms:
            promise = _promises(ts_ms, policy, Waits(labels.wait_ms, observation_ms, 0), traffic or Traffic())
            clicked = labels.clicked
            delay = np.where(clicked, labels.acted_ms - ts_ms, 0)
            early = early & is_early(promise, delay, delay)
        late = np.flatnonzero(clicked & ~early)
        known_ms = ts_ms + np.where(early, np.maximum(delay, promise.hold_ms), promise.observe_ms)
        code = promise.code.astype(np.uint8)
        value, due_ms = labels.outcomes, np.where(policy is None, 0, labels.outcome_ms)  # (n, K)
        aged = [one for one in labels.of_events if one.policy.early and policy is not None]
        if aged:
            value = value.copy()
            value[:, [one.column for one in aged]] = np.nan
        kind = np.where(early, POSITIVE, NEGATIVE).astype(np.uint8)
        told = (due_ms <= known_ms[:, None]) & (early[:, None] | ~labels.on_click)
        first = cls.told_once(np.arange(n), known_ms, kind, code, np.where(told, value, np.float32(np.nan)))
        late_ms = np.maximum(ts_ms[late] + delay[late], known_ms[late])
        told_late = (due_ms[late] <= late_ms[:, None]) & labels.on_click
        told[late] |= told_late
        second = np.where(told_late, value[late], np.float32(np.nan))
        both = first.joined(cls.told_once(late, late_ms, CORRECTION, code[late], second))
        for one in aged:
            both = both.joined(cls.by_age(one, value.shape[1]))
        again, k = np.nonzero(np.isfinite(value) & ~told)
        if not len(again):
            return both
        due, at = np.unique(np.stack([again, due_ms[again, k]]), axis=1, return_inverse=True)  # one for all of a time
        outcomes = np.full((due.shape[1], value.shape[1]), np.nan, np.float32)
        outcomes[at.reshape(-1), k] = value[again, k]
        return both.joined(cls.told_once(due[0].astype(np.intp), due[1], OUTCOME, code[due[0]], outcomes))

    def page_end(self, stop: int, page_of: Callable[[NDArray[np.intp]], NDArray[Any]]) -> int:
        """Where to end a micro-batch that would end before sample ``stop``, so that it cuts no page that is taught as
        one. ``page_of``: the page of each of some rows, (b,)."""
        last = int(np.searchsorted(self.known_ms, self.known_ms[stop - 1], side="right"))  # of this time
        while stop < last:
            ahead = slice(stop - 1, min(stop + _PAGE_ROWS, last))
            found = page_end(page_of(self.row[ahead]), self.kind[ahead], self.policy[ahead], 1) - 1
            stop += found
            if found < _PAGE_ROWS:
                break
        return stop

    def batch(self, part: slice, rows: LogRows, cat: NDArray[np.int64], num: NDArray[np.float32]) -> SampleBatch:
        """The samples ``part``, with features cat (B, F) and num (B, N) of their rows."""
        row = self.row[part]
        pages, page = np.unique(rows.page[row], return_inverse=True)
        columns: dict[str, NDArray[Any]] = {
            "ts_ms": rows.ts_ms[row],
            "slot": rows.slots(row),
            "user": rows.hashes(rows.builder.user_column, row),
            "item": rows.hashes(rows.builder.item_column, row),
            "clicked": rows.label[row] == 1,
            "cat": cat,
            "num": num,
        }
        return batch_of(self.take(part), rows.requests(pages), page, columns)


def batch_of(
    samples: KnownSamples, request: tuple[str, ...], page: NDArray[np.intp], columns: Mapping[str, NDArray[Any]]
) -> SampleBatch:
    """All of ``samples`` (B) as a batch. ``columns``: ts_ms, slot, user, item (B,), cat (B, F) and num (B, N) of the
    samples' rows; and clicked (B,), where some are sent again."""
    clicked, again = samples.kind != NEGATIVE, samples.kind >= PAGE
    if again.any():
        clicked = np.where(again, columns["clicked"], clicked)
    return SampleBatch.of_rows(
        samples.kind,
        columns["ts_ms"],
        columns["cat"],
        columns["num"],
        request,
        page=page.astype(np.int32),
        position=columns["slot"],
        user=columns["user"],
        item=columns["item"],
        label=clicked.astype(np.float32),
        actions=np.where(clicked, _CLICKED, _EXPOSED).astype(np.uint8),
        policy=samples.policy,
        outcomes=samples.outcomes,
        telling=samples.telling,
    )


def learn_through(
    model: ReplayModel,
    rows: LogRows,
    cat: NDArray[np.int64],
    num: NDArray[np.float32],
    samples: KnownSamples,
    batch_rows: int,
    batch_ms: int | None = None,
    only: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Scores of all n rows, (n,), each before later labels are learnt: a replay from features cat (n, F) and num (n,
    N) that were made before, and are only read. ``batch_ms``: the longest time that the labels of a micro-batch may
    lie apart. ``only``: the rows to score, (n,); the others get 0."""
    bias = rows.builder.schema.layout.bias_columns
    p, scored, stop = np.zeros(rows.n, np.float32), 0, 0
    by_page = learns_by_page(model)
    while stop < len(samples.row):
        part = slice(stop, min(stop + batch_rows, len(samples.row)))
        if batch_ms is not None:
            last_ms = samples.known_ms[part.start] + batch_ms
            part = slice(part.start, min(part.stop, int(np.searchsorted(samples.known_ms, last_ms, side="right"))))
        if by_page:
            part = slice(part.start, samples.page_end(part.stop, lambda row: rows.page[row]))
        stop = part.stop
        # Exposures up to the time at which the batch was complete are scored without it.
        end = int(np.searchsorted(rows.ts_ms, samples.known_ms[part.stop - 1], side="right"))
        for first in range(scored, end, batch_rows):
            shown = np.arange(first, min(first + batch_rows, end))
            shown = shown if only is None else shown[only[shown]]
            ids = cat[shown]
            ids[:, bias] = 0
            p[shown] = model.score(ids, num[shown])
        scored = max(scored, end)
        row = samples.row[part]
        model.learn(samples.batch(part, rows, cat[row], num[row]))
    return p


def _promises(
    ts_ms: NDArray[np.int64], policy: LabelPolicy, waits: Waits, traffic: Traffic
) -> Promise[NDArray[np.int64]]:
    """The promise of each exposure of times (n,), ascending. (n,) each"""
    times, back = np.unique(ts_ms, return_inverse=True)
    made = np.empty((len(times), len(Promise._fields)), np.int64)
    gaps = np.flatnonzero(np.diff(times) > waits.attribution_ms) + 1
    for start, stop in pairwise(np.unique([0, *gaps, len(times)]).tolist()):
        traffic.promise(policy, waits, int(times[start]))  # here traffic may begin; it does not before ``stop``
        flowing_ms = (times[start:stop] - traffic.began_ms).tolist()
        last = policy.promise(waits, flowing_ms[-1])
        for k, so_far_ms in enumerate(flowing_ms, start):
            promise = policy.promise(waits, so_far_ms)
            if promise == last:  # and so are all between, since waits never grow while traffic flows
                made[k:stop] = promise
                break
            made[k] = promise
        traffic.newest_ms = int(times[stop - 1])
    return Promise(*made[back].T)
