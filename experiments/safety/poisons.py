# core
"""Poisons of samples to try the gate with: what producers, joins and people get wrong for some minutes of event time.

Poisoned samples reach the learner alone. What pages are judged by stays clean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.ranker.repeats import exposure_ids
from millrace.basics.durations import DAY_MS, MINUTE_MS
from millrace.contracts.events import CLICK, EXPOSURE
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import Schema

EXPOSED = 1 << EXPOSURE
CLICKED = EXPOSED | 1 << CLICK

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Window:
    """When a poison is given, by the time of exposures, and what it has to know of the traffic to be whole."""

    from_ms: int
    until_ms: int
    schema: Schema
    corrected: NDArray[np.uint64]  # exposures of which a correction comes
    popular: int  # the value hash of the item that is shown most

    @classmethod
    def of(cls, batches: Sequence[SampleBatch], schema: Schema, from_ms: int, minutes: float) -> Window:
        """The window over the traffic ``batches``, clean."""
        window = cls(from_ms, from_ms + round(minutes * MINUTE_MS), schema, np.empty(0, np.uint64), 0)
        values, counts = np.unique(np.concatenate([b.item[window.rows(b)] for b in batches]), return_counts=True)
        corrected = np.concatenate([exposure_ids(b)[b.kind == CORRECTION] for b in batches])
        return replace(window, corrected=corrected, popular=int(values[counts.argmax()]) if len(values) else 0)

    def rows(self, batch: SampleBatch) -> Mask:
        """(B,)"""
        inside: Mask = (batch.ts_ms >= self.from_ms) & (batch.ts_ms < self.until_ms)
        return inside

    def clicked(self, batch: SampleBatch) -> Mask:
        """Rows whose exposure is clicked in truth, by now or later. (B,)"""
        clicked: Mask = (batch.kind == POSITIVE) | np.isin(exposure_ids(batch), self.corrected)
        return clicked

    def draws(self, batch: SampleBatch, what: int) -> NDArray[np.float64]:
        """A number in [0, 1) for each exposure, the same whenever it comes. (B,)"""
        return drawn(exposure_ids(batch) * np.uint64(2 * what + 1))


def drawn(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """A number in [0, 1) for each hash. (n,)"""
    return (hashes >> np.uint64(11)).astype(np.float64) / 2.0**53


def users_drawn(batch: SampleBatch) -> NDArray[np.float64]:
    """The same number whenever a user comes. (B,)"""
    return drawn(batch.user * np.uint64(0x9E3779B97F4A7C15))


Spoil = Callable[[SampleBatch, Window], SampleBatch]


class Poison(NamedTuple):
    """What is done to samples, for how long, and whether the gate claims to catch it."""

    name: str
    minutes: float
    spoil: Spoil
    claimed: bool = True

    def during(self, window: Window) -> Callable[[SampleBatch], SampleBatch]:
        """Poisons the micro-batches of a window."""
        return lambda batch: self.spoil(batch, window)


def _labelled(batch: SampleBatch, rows: Mask, clicked: Mask) -> SampleBatch:
    """The batch with other labels on ``rows``, (B,). Corrections of them are gone: their exposures say all at once."""
    kind = np.where(rows, np.where(clicked, POSITIVE, NEGATIVE), batch.kind).astype(np.uint8)
    label = np.where(rows, clicked, batch.label).astype(np.float32)
    actions = np.where(rows, np.where(clicked, CLICKED, EXPOSED), batch.actions).astype(np.uint8)
    return replace(batch, kind=kind, label=label, actions=actions).take(~(rows & (batch.kind == CORRECTION)))


def _numbers(batch: SampleBatch, rows: Mask, columns: Sequence[int] | slice, value: float) -> SampleBatch:
    num = np.array(batch.num)
    at = np.flatnonzero(rows)
    num[np.ix_(at, np.arange(num.shape[1])[columns])] = value
    return replace(batch, num=num)


def user_side(schema: Schema) -> tuple[list[int], list[int]]:
    """Columns of cat and of num that come of the user: his fields, and windows of keys with one."""
    own = {f.name for f in schema.fields if f.of == "user"}
    keys = tuple(f"{key.name}." for key in schema.windows.keys if own & set(key.columns))
    cat = [c for c, name in enumerate(schema.layout.cat_names) if name in own]
    num = [c for c, name in enumerate(schema.layout.num_names) if name in own or name.startswith(keys)]
    return cat, num


def without_user(batch: SampleBatch, rows: Mask, schema: Schema) -> SampleBatch:
    """The user side of ``rows``, (B,), is missing."""
    cats, nums = user_side(schema)
    cat = np.array(batch.cat)
    cat[np.ix_(np.flatnonzero(rows), np.array(cats, np.intp))] = 0
    return _numbers(replace(batch, cat=cat), rows, nums, 0.0)


def no_user(batch: SampleBatch, window: Window) -> SampleBatch:
    """The profile store is away, and nobody says so."""
    return without_user(batch, window.rows(batch), window.schema)


def ahead(batch: SampleBatch, window: Window) -> SampleBatch:
    """One row is dated 100 days ahead."""
    rows = np.flatnonzero(window.rows(batch))
    if not len(rows):
        return batch
    ts_ms = np.array(batch.ts_ms)
    ts_ms[rows[0]] += 100 * DAY_MS
    return replace(batch, ts_ms=ts_ms)


def _relabel(rows: Callable[[SampleBatch, Window], Mask] | None, clicked: bool | None) -> Spoil:
    """Labels of ``rows`` (B,), None: of all, become ``clicked``; None: each becomes the other one."""

    def spoil(batch: SampleBatch, window: Window) -> SampleBatch:
        labels = ~window.clicked(batch) if clicked is None else np.full(len(batch), clicked)
        return _labelled(batch, window.rows(batch) & (rows is None or rows(batch, window)), labels)

    return spoil


POISONS = (
    Poison("flips-10", 10, _relabel(None, None)),
    Poison("flips-60", 60, _relabel(None, None)),
    Poison("ones-10", 10, _relabel(None, True)),
    Poison("no-clicks-60", 60, _relabel(None, False)),  # the clicks do not come
    Poison("zeros-60", 60, lambda b, w: _numbers(b, w.rows(b), slice(None), 0.0)),  # the window store is away
    Poison("no-user-60", 60, no_user),
    # An overflow in one column, in a tenth of the rows.
    Poison("huge-10", 10, lambda b, w: _numbers(b, w.rows(b) & (w.draws(b, 1) < 0.1), [0], 1e38)),
    Poison("ahead", 0.5, ahead),
    # One user of twenty clicks everything; one label of ten is the other one; a popular item is always clicked.
    Poison("clickers-13h", 780, _relabel(lambda b, _: users_drawn(b) < 0.05, True), claimed=False),
    Poison("tenth-flipped-13h", 780, _relabel(lambda b, w: w.draws(b, 2) < 0.1, None), claimed=False),
    Poison("one-item-13h", 780, _relabel(lambda b, w: b.item == np.uint64(w.popular), True), claimed=False),
)
