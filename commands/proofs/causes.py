# core
"""Why features that replay makes of an archive differ from those that the scorer logged: each cause is computed.

Replay reads windows at the exposure's time and counts what happened before it. A scorer reads them at the page's time,
from what had been published by then. A ladder of hypotheses leads from the one to the other. Each is a whole
computation with the code that serves; a difference belongs to the first hypothesis under which it is gone::

    REPLAY      as `millrace log replay` makes them
    POSITION    the slot as the page was answered, not where it was shown; keys of positions, which ranking lacks
    PAGE_TIME   windows, ages, hours at the page's time; before it the page had to be seen
    LATE        with actions that came after the attribution window: the loop counts them, a row of the archive has none
    TILE_BOUND  what had been sent before the page was made, though its time is not before the page's: a tile is whole
    UNSENT      without what had happened before the page, and was sent after it was made
    FEED_LAG    without the newest events: counts that were published some seconds before
    PAGE_LOG    and without pages whose own log reached the stream after later ones: it counts a page when it has both
    UNIT_TURN   counts as of the tile before or after: a page at the turn of an hour
    MISSING     user or attributes not known to the scorer: a new user, or an online store that did not answer
    ATTRIBUTES  attributes that another exposure of the same user or item has: they changed in between
    CONTEXT     the request's own fields, of which an archive has none
    UNEXPLAINED none of these

A *block* is what one window key gives of one exposure: counts and means of its spans, and rates. Counts decide which
hypothesis a block fits; then all numbers are made anew from the chosen counts and compared bit by bit, so a rate that
does not follow from its counts is found too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from commands.proofs.archived import Archived
from commands.proofs.lag import KeyEvents, held, own_newest, taken
from commands.proofs.views import Asked, Counts, Events, read, views
from commands.replay.logfeatures import Labels, LogFeatures
from millrace.basics.hashing import U64

_CHUNK = 8192
_ODD = np.uint64(0x9E3779B97F4A7C15)


class Cause(IntEnum):
    """See the module's text; in the order in which they are tried."""

    REPLAY = 0
    POSITION = 1
    PAGE_TIME = 2
    LATE = 3
    TILE_BOUND = 4
    UNSENT = 5
    FEED_LAG = 6
    PAGE_LOG = 7
    UNIT_TURN = 8
    MISSING = 9
    ATTRIBUTES = 10
    CONTEXT = 11
    UNEXPLAINED = 12


@dataclass(slots=True)
class Compared:
    """m exposures; what replay gives of them, and for each value why it differs (REPLAY: it does not)."""

    cat: NDArray[np.int64]  # (m, F) as replay makes them
    num: NDArray[np.float32]  # (m, N)
    cat_cause: NDArray[np.uint8]  # (m, F)
    num_cause: NDArray[np.uint8]  # (m, N)
    lags_ms: dict[str, list[int]] = field(default_factory=lambda: {"user": [], "item": []})
    """For each page that lacked events of a feed: wall time between the oldest of these and the page."""


def compare(archived: Archived, tick: Callable[[str], None] = lambda _: None) -> Compared:
    """Compares all exposures with logged features.

    Args:
        tick: is told what is computed now.
    """
    tick("features as replay makes them")
    cat, num = _replayed(archived)
    causes = _Causes(archived, cat, num, tick)
    return causes.found


def _replayed(archived: Archived) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """cat (m, F) and num (m, N) by replay's own code."""
    rows, schema, which = archived.rows, archived.schema, archived.pages.row
    features = LogFeatures(rows, Labels(archived.log, schema, rows), schema)
    cat, num = np.empty_like(archived.pages.cat), np.empty_like(archived.pages.num)
    for start in range(0, len(which), _CHUNK):
        part = slice(start, start + _CHUNK)
        cat[part], num[part] = features.of(which[part])
        features.forget(int(which[start]))
    return cat, num


class _Causes:
    """The ladder, run once."""

    def __init__(
        self, archived: Archived, cat: NDArray[np.int64], num: NDArray[np.float32], tick: Callable[[str], None]
    ) -> None:
        self._a, self._tick = archived, tick
        schema, layout = archived.schema, archived.schema.layout
        self._windows, self._start = schema.windows, layout.window_start
        self._actions, self._means = len(schema.windows.actions), len(schema.windows.means)
        self._spans = len(schema.windows.spans)
        m = len(archived.pages)
        self._at = archived.rows.ts_ms[archived.pages.row]
        self._sides = [schema.key_side(key) for key in schema.windows.keys]
        keys = self._keys()
        self._event_keys = keys
        late = {f.name for f in schema.fields if f.bias} | {"position"}
        self._late = [k for k, key in enumerate(schema.windows.keys) if late & set(key.columns)]
        self._asked_keys = keys[archived.pages.row]
        self.found = Compared(cat, num, np.zeros(cat.shape, np.uint8), np.zeros(num.shape, np.uint8))
        self._cause = np.zeros((m, layout.K), np.uint8)  # of each block's own numbers
        self._open = np.ones((m, layout.K), np.bool_)  # no hypothesis fits yet
        shape = (m, layout.K, self._spans, self._windows.columns)
        self._chosen: Counts = np.zeros(shape, np.int64)
        if layout.K:
            self._blocks()
            self._numbers()
        self._plain()
        self._ids()

    # -- windows ----------------------------------------------------------------------------------------------

    def _keys(self) -> U64:
        """Window keys of all rows of the log, as the loop counts under them. (n, K)"""
        rows = self._a.rows
        out = np.zeros((rows.n, self._a.schema.layout.K), np.uint64)
        for start in range(0, rows.n, _CHUNK):
            part = slice(start, min(start + _CHUNK, rows.n))
            out[part] = rows.builder.keys(rows.columns(part)[0], part.stop - part.start)
        return out

    def _events(self, row: NDArray[np.intp], *columns: NDArray[Any]) -> Events:
        """Events of exposures; columns: visible, time, action."""
        return Events.sorted(*columns, self._event_keys[row], self._a.rows.steps()[row])

    def _blocks(self) -> None:
        a, pages, happened = self._a, self._a.pages, self._a.happened
        labels = Labels(a.log, a.schema, a.rows)
        replayed = self._events(labels.event_row, labels.event_ms, labels.event_ms, labels.event_action)
        self._try(Cause.REPLAY, replayed, self._at, self._at)
        if self._late:
            self._asked_keys[:, self._late] = 0
            self._try(Cause.POSITION, replayed, self._at, self._at)
        self._try(Cause.PAGE_TIME, replayed, pages.page_ms, pages.page_ms)
        counted = self._events(happened.row, happened.ts_ms, happened.ts_ms, happened.action)
        self._try(Cause.LATE, counted, pages.page_ms, pages.page_ms)
        known = self._events(happened.row, happened.known_ms, happened.ts_ms, happened.action)
        about = happened.partition, happened.message, a.rows.page[happened.row]
        self._by_key = KeyEvents(known, *about, self._windows)
        self._try(Cause.TILE_BOUND, known, pages.served_ms, pages.page_ms, self._search)

    def _try(
        self,
        cause: Cause,
        events: Events,
        asks: NDArray[np.int64],
        reads_ms: NDArray[np.int64],
        otherwise: Callable[[Asked, NDArray[np.intp]], None] | None = None,
    ) -> None:
        """Which blocks without an explanation are equal under a hypothesis."""
        some = np.flatnonzero(self._open.any(axis=1))
        self._tick(f"{len(some):,} exposures: {cause.name.lower().replace('_', ' ')}")
        for asked in views(self._windows, events, asks[some], reads_ms[some], self._asked_keys[some]):
            rows = some[asked.rows]
            made = self._a.rows.builder.num({}, asked.counts, len(rows), int(reads_ms[rows[0]]))
            fits = self._open[rows] & self._equal(made, rows)
            row, key = np.nonzero(fits)
            self._chosen[rows[row], key] = asked.counts[row, key]
            self._cause[rows[row], key] = cause
            self._open[rows[row], key] = False
            if cause is Cause.TILE_BOUND:
                for r, k in zip(rows[row].tolist(), key.tolist(), strict=True):
                    self._cause[r, k] = self._sent_or_not(r, k)
            if otherwise is not None and self._open[rows].any():
                otherwise(asked, rows)

    def _own(self, num: NDArray[np.float32]) -> NDArray[np.uint32]:
        """The bits of blocks' own numbers: those that follow from their own counts. (r, K, S, A + M)"""
        r, rates = len(num), 2 * self._actions - 1
        block = num[:, self._start :].reshape(r, self._a.schema.layout.K, self._spans, rates + self._means)
        return np.concatenate([block[..., : self._actions], block[..., rates:]], axis=3).view(np.uint32)

    def _equal(self, made: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        equal: NDArray[np.bool_] = (self._own(made) == self._own(self._a.pages.num[rows])).all(axis=(2, 3))
        return equal

    def _sent_or_not(self, row: int, key: int) -> Cause:
        """Of a block that fits the order of the wall and not that of event time: which of the two made it differ."""
        pages, events = self._a.pages, self._by_key.events
        before, after = self._by_key.around(int(self._asked_keys[row, key]), int(pages.served_ms[row]), 64)
        extra = bool((events.ts_ms[before] >= pages.page_ms[row]).any())
        unsent = bool((events.ts_ms[after] < pages.page_ms[row]).any())
        return Cause.UNSENT if unsent and not extra else Cause.TILE_BOUND

    def _search(self, asked: Asked, rows: NDArray[np.intp]) -> None:
        """Looks for what the blocks of a page lacked that no order explains. Blocks of its user and of its items come
        from two feeds."""
        logged = self._own(self._a.pages.num[rows]).view(np.float32)
        w = len(self._windows.durations)
        groups: dict[str, dict[bytes, list[tuple[int, int]]]] = {"user": {}, "item": {}}  # rows share most keys
        for r, k in zip(*(index.tolist() for index in np.nonzero(self._open[rows])), strict=True):
            name = self._asked_keys[rows[r], k].tobytes() + logged[r, k, :w, : self._actions].tobytes()
            groups[self._sides[k]].setdefault(name, []).append((r, k))
        for side, blocks in groups.items():
            if not blocks:
                continue
            first = np.array([places[0] for places in blocks.values()]).T
            wanted = logged[first[0], first[1], :w, : self._actions].astype(np.int64)
            counts, causes = self._nearest(asked, rows, first, wanted, side)
            for places, found, cause in zip(blocks.values(), counts, causes.tolist(), strict=True):
                for r, k in places:
                    self._chosen[rows[r], k], self._cause[rows[r], k] = found, cause
                    self._open[rows[r], k] = False

    def _nearest(
        self, asked: Asked, rows: NDArray[np.intp], first: NDArray[np.intp], wanted: NDArray[np.int64], side: str
    ) -> tuple[Counts, NDArray[np.uint8]]:
        """Counts (B, S, C) and cause (B,) of blocks of one page; where nothing fits, what comes nearest.

        Args:
            first: (2, B) a row of the page, and a window key.
            wanted: (B, W, A) the logged counts of windows.
        """
        pages, unit, by_key = self._a.pages, self._windows.unit_ms, self._by_key
        page_ms, served_ms = int(pages.page_ms[rows[0]]), int(pages.served_ms[rows[0]])
        keys = self._asked_keys[rows[first[0]], first[1]]
        near = by_key.near(keys, served_ms)
        w, a, n = wanted.shape[1], wanted.shape[2], len(keys)
        best = asked.counts[first[0], first[1]].astype(np.int64)
        wrong = np.count_nonzero(best[:, :w, :a] != wanted, axis=(1, 2))
        cause = np.full(n, Cause.TILE_BOUND, np.uint8)

        def offer(why: Cause, base: Counts, at_ms: int, gone: NDArray[np.bool_]) -> bool:
            """Takes the counts without some events for those blocks to which they come nearer."""
            counts = base - by_key.amounts(near.part(gone), n, at_ms).astype(np.int64)
            off = np.count_nonzero(counts[:, :w, :a] != wanted, axis=(1, 2))
            nearer = off < wrong
            best[nearer], wrong[nearer], cause[nearer] = counts[nearer], off[nearer], why
            return bool(nearer.any())

        base = best.copy()
        lacking = base[:, w - 1, :a] - wanted[:, w - 1]  # the longest window holds all that is new
        gone = taken(near, lacking)
        if gone.any() and offer(Cause.FEED_LAG, base, page_ms, gone):
            oldest = [near.visible[gone & (near.partition == p)] for p in np.unique(near.partition).tolist()]
            ends = [int(visible.min()) for visible in oldest if len(visible)]
            self.found.lags_ms[side].append(served_ms - min(ends))
        if wrong.any():
            offer(Cause.PAGE_LOG, base, page_ms, held(near, lacking, gone))
        if wrong.any():
            offer(Cause.FEED_LAG, base, page_ms, own_newest(near, lacking))
        turn = page_ms - page_ms % unit
        for at_ms in (turn - 1, turn + unit + 1) if wrong.any() else ():
            then = read(asked.store, keys[:, None], at_ms)[:, 0].astype(np.int64)
            there = self._by_key.events.ts_ms[near.event] // unit <= at_ms // unit
            lacking = then[:, w - 1, :a] - wanted[:, w - 1]
            some = near.part(there)
            for which in (taken(some, lacking), own_newest(some, lacking)):
                gone = np.zeros(len(there), np.bool_)
                gone[np.flatnonzero(there)[which]] = True
                offer(Cause.UNIT_TURN, then, at_ms, gone)
        if side == "user":
            new = (wrong > 0) & ~wanted.any(axis=(1, 2))
            best[new], cause[new] = 0, Cause.MISSING
        return best, cause

    def _numbers(self) -> None:
        """Makes all window numbers anew from the chosen counts; each that differs gets its cause."""
        self._tick("all numbers, from the counts that fit")
        pages, builder, layout = self._a.pages, self._a.rows.builder, self._a.schema.layout
        above = dict(builder.order)
        size = 2 * self._actions - 1 + self._means
        for start in range(0, len(pages), _CHUNK):
            part = slice(start, min(start + _CHUNK, len(pages)))
            n = part.stop - part.start
            made = builder.num({}, self._chosen[part], n, self._times(part))
            differs = _bits(self.found.num[part]) != _bits(pages.num[part])
            fits = _bits(made) == _bits(pages.num[part])
            causes = np.zeros((n, layout.N), np.uint8)
            for k in range(layout.K):
                rate, parent = self._cause[part, k], above[k]
                while parent is not None:
                    rate = np.maximum(rate, self._cause[part, parent])
                    parent = above[parent]
                for s in range(self._spans):
                    at = self._start + (k * self._spans + s) * size
                    causes[:, at : at + size] = self._cause[part, k][:, None]
                    causes[:, at + self._actions : at + 2 * self._actions - 1] = rate[:, None]
            causes[~fits | (causes == Cause.REPLAY)] = Cause.UNEXPLAINED
            self.found.num_cause[part, self._start :] = np.where(differs, causes, 0)[:, self._start :]

    def _times(self, part: slice) -> NDArray[np.int64]:
        """When decayed counts were read: at the page, where any hypothesis after REPLAY was needed."""
        pages = self._a.pages
        as_replayed = (self._cause[part] <= Cause.POSITION).all(axis=1)
        return np.where(as_replayed, self._at[part], pages.page_ms[part])

    # -- attributes -------------------------------------------------------------------------------------------

    def _entity(self, side: str) -> U64:
        """The user or item of each exposure, as a hash. (m,)"""
        rows = self._a.rows
        return rows.hashes(rows.builder.user_column if side == "user" else rows.builder.item_column, self._a.pages.row)

    def _plain(self) -> None:
        """Numbers that are no window's."""
        pages = self._a.pages
        for i, f in enumerate(self._a.schema.layout.plain_fields):
            made, logged = self.found.num[:, i], pages.num[:, i]
            options = [(Cause.MISSING, np.zeros(len(pages), np.float32))]
            if f.name == "age_days":
                days = self._a.rows.columns(pages.row)[1]["age_days"]
                born = np.where(days > 0, np.rint(self._at - np.nan_to_num(days) * 86_400_000.0), 0).astype(np.int64)
                options.insert(0, (Cause.PAGE_TIME, self._a.rows.builder.age_days(pages.page_ms, born)))
            causes = _first(_bits(made), _bits(logged), [(c, _bits(v)) for c, v in options])
            self._of_another_time(causes, f.of, _bits(made).astype(np.uint64), _bits(logged).astype(np.uint64))
            self.found.num_cause[:, i] = causes

    def _ids(self) -> None:
        """Feature ids."""
        a, pages, builder = self._a, self._a.pages, self._a.rows.builder
        self._tick("attributes")
        columns, _ = a.rows.columns(pages.row)
        at_page = builder.cat({**columns, **builder.context(pages.page_ms)}, len(pages))
        answered = builder.cat({"position": builder.position(pages.slot)}, len(pages))
        starts = zip(a.schema.layout.cat_fields, a.schema.layout.cat_starts, strict=True)
        for f, start in starts:
            for c in range(start, start + f.slots):
                made, logged = self.found.cat[:, c], pages.cat[:, c]
                options = [(Cause.PAGE_TIME, at_page[:, c])]
                if f.name == "position":
                    options = [(Cause.POSITION, answered[:, c])]
                causes = _first(made, logged, [*options, (Cause.MISSING, np.zeros_like(made))])
                self._of_another_time(causes, f.of, made.view(np.uint64), logged.view(np.uint64))
                self.found.cat_cause[:, c] = causes

    def _of_another_time(self, causes: NDArray[np.uint8], side: str, made: U64, logged: U64) -> None:
        """Differences that another exposure of the same user or item explains; of the request nothing is archived."""
        left = causes == Cause.UNEXPLAINED
        if not left.any():
            return
        if side == "context":
            causes[left & (made == 0)] = Cause.CONTEXT
            return
        whose = self._entity(side)
        known = np.unique(whose * _ODD + made)
        causes[left & np.isin(whose * _ODD + logged, known)] = Cause.ATTRIBUTES


def _bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def _first(made: Any, logged: Any, options: list[tuple[Cause, Any]]) -> NDArray[np.uint8]:
    """REPLAY where both are equal, else the first option that is equal, else UNEXPLAINED. (m,)"""
    causes = np.where(made == logged, Cause.REPLAY, Cause.UNEXPLAINED).astype(np.uint8)
    for cause, values in options:
        causes[(causes == Cause.UNEXPLAINED) & (values == logged)] = cause
    return causes


def by_cause(found: Compared) -> Counter[Cause]:
    """How many values differ for each cause."""
    tally: Counter[Cause] = Counter()
    for causes in (found.cat_cause, found.num_cause):
        for code, n in enumerate(np.bincount(causes.reshape(-1), minlength=len(Cause)).tolist()):
            if n and code:
                tally[Cause(code)] += n
    return tally
