# core
"""Filters of a request: which items its page may show, computed before recall, and how many of a kind.

::

    only, not ──► each attribute's column in the item table ─┐ kept for the next request with the same
    alive ───────────────────────────────────────────────────┴─► mask ─┐
    exclude, hide bought, clicked ──► rows ────────────────────────────┼─► Allowed ─► recall, the control group
    hide seen ──► the user's window keys of user and item ─────────────┘
    caps ──► values of the candidates, best first ──► those that fit

The item table has an attribute in one of three forms: hashes for those in the schema's ``filters``, feature ids of a
categorical field, numbers of a numeric one, for ranges. A mask is valid until a row of the table changes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MS
from millrace.basics.hashing import U64, column_hash, combine, mix
from millrace.contracts.events import Id
from millrace.contracts.filter_attributes import AGE, asked_hashes, filterable, unknown
from millrace.contracts.schema import DERIVED, EXPOSURE_AGE
from scorer.catalog.itemtable import ItemRows
from scorer.page import filterkernels as kernels
from scorer.page.page_wire import Filters, ListRequest, Range, RequestError, filters_of
from scorer.page.rank import Ranker
from scorer.recall.candidate_lists import Allowed, ListedRows
from scorer.users.userrecord import KnownUser

MASK_BYTES = 16 << 20
"""Cache of a worker for masks of the last distinct pairs of ``only`` and ``not``."""
_NOBODY = np.uint64(np.iinfo(np.uint64).max)
_EVER_MS = 1e18  # longer than any age that is known
_ENTRY_BYTES, _HASH_BYTES = 1024, 48
"""Python's overhead for a mask and its clauses, and for each value of its filter."""


class _Place(NamedTuple):
    """Where an attribute lies on the items."""

    named: bool  # by the schema's filters; else it is a field
    first: int  # its columns of ``cat``
    stop: int
    salt: np.uint64


class _UserItem(NamedTuple):
    """The window key that counts a user's exposures of an item."""

    salt: np.uint64
    user_first: bool
    column: int  # of the item table's ``values``: the item


class Boosts(NamedTuple):
    """What values of an attribute are given."""

    attribute: str
    hashes: U64  # (m + 1,) ascending, as the attribute's columns have them; behind the m values there is one of none
    logits: NDArray[np.float64]  # (m + 1,)


class ItemFilters:
    def __init__(self, ranker: Ranker) -> None:
        self._ranker, self._items, self._builder = ranker, ranker.items, ranker.builder
        schema, layout, form = self._builder.schema, self._builder.layout, ranker.items.form
        self._places = dict.fromkeys(schema.filters, _Place(True, 0, 0, np.uint64(0)))
        starts = {f.name: (start, f) for f, start in zip(layout.cat_fields, layout.cat_starts, strict=True)}
        for name in filterable(schema):
            if name not in self._places:
                start, field = starts[name]
                first = int(np.searchsorted(form.cat_columns, start))
                self._places[name] = _Place(False, first, first + field.slots, layout.field_salt(field))
        self._numbers = {name: n for n, name in enumerate(form.plain_names) if name not in DERIVED}
        self._seen: _UserItem | None = None
        both = self._builder.user_column, self._builder.item_column
        for name, key in zip(layout.key_names, schema.windows.keys, strict=True):
            if len(key.columns) == 2 and set(key.columns) == set(both):
                column = form.value_names.index(both[1])
                self._seen = _UserItem(layout.key_salt(name), key.columns[0] == both[0], column)
        self._masks: OrderedDict[Any, Allowed] = OrderedDict()
        self._of, self._bytes = -1, 0  # generation of the masks; what they take
        self._last: tuple[Filters, KnownUser, int, int, Allowed] | None = None

    # -- a request --------------------------------------------------------------------------------------------

    def of(self, asked: ListRequest) -> Filters | None:
        """The filters of a request; None: it has none. Raises RequestError for unknown attributes; the message lists
        the known ones and how to add one."""
        filters = filters_of(asked)
        if filters is None:
            return None
        for what, names in (("only", filters.only), ("not", filters.without), ("caps", filters.caps)):
            ranges = [] if what == "caps" else [n for n in names if isinstance(names[n], Range) and n != EXPOSURE_AGE]
            for name in ranges:
                if name not in self._numbers and name != AGE:
                    known = ", ".join([*self._numbers, AGE])
                    problem = f"{what} '{name[:40]}' is no number, which a range needs"
                    raise RequestError(problem, f"give values, or use a numeric field of items: {known}")
            self.check(what, [name for name in names if name not in ranges])
        if "seen" in filters.hide and self._seen is None:
            user, item = self._builder.user_column, self._builder.item_column
            raise RequestError(
                "hide 'seen' needs counts that this schema does not keep",
                f'add [[windows.keys]] columns = ["{user}", "{item}"] to the schema, or leave it out',
            )
        return filters

    def check(self, what: str, names: Iterable[str]) -> None:
        """Raises RequestError for an attribute that is not known."""
        found = unknown(self._builder.schema, names)
        if found is not None:
            problem, remedy = found
            raise RequestError(f"{what} {problem}", remedy)

    def allowed(self, filters: Filters, user: KnownUser, ts_ms: int) -> Allowed:
        last = self._last
        if last is not None and last[0] is filters and last[1] is user and last[2:4] == (ts_ms, self._items.generation):
            return last[4]  # asked once more for the same page
        found = self._by_attributes(filters)
        rows = self._items.rows_of(self._left_out(filters, user, ts_ms))
        rows = rows[rows >= 0]
        seen = "seen" in filters.hide and self._seen is not None
        both = (filters.only.get(AGE), True), (filters.without.get(AGE), False)
        ages = [(asked, keep) for asked, keep in both if isinstance(asked, Range)]
        if len(rows) or seen or ages:
            mask = found.mask.copy()
            mask[rows] = False
            if seen:
                self._take_seen(mask, user, ts_ms)
            for asked, keep in ages:
                low, high = (asked.low or 0.0) * DAY_MS, _EVER_MS if asked.high is None else asked.high * DAY_MS
                age_ms = self._ages(ts_ms)  # whole; an age at an end of the range is within
                mask &= ((age_ms > low - 0.5) & (age_ms < min(high, _EVER_MS) + 0.5)) == keep
            found = _allowed(mask)
        self._last = filters, user, ts_ms, self._items.generation, found
        return found

    def passing(self, filters: Filters, user: KnownUser, ts_ms: int, ids: Sequence[Id]) -> list[Id]:
        """The items that are neither excluded nor hidden, by id alone: for pages that are made without the item
        table."""
        out = {str(i) for i in self._left_out(filters, user, ts_ms)}
        left = [i for i in ids if str(i) not in out]
        if "seen" not in filters.hide or self._seen is None or not left:
            return left
        items, hidden = column_hash([str(i) for i in left]), np.zeros(len(left), np.bool_)
        for one in (user, *user.guests):
            columns = self._user_hash(one), items
            keys = combine(self._seen.salt, *(columns if self._seen.user_first else columns[::-1]))
            hidden |= np.isin(keys, self._ranker.seen_keys(one, ts_ms))
        return [i for i, gone in zip(left, hidden.tolist(), strict=True) if not gone]

    # -- boosts and caps ---------------------------------------------------------------------------------------

    def boosts(self, factors: Mapping[str, Mapping[str, float]]) -> list[Boosts]:
        """Factors of odds by attribute and value, as :meth:`boosted` takes them."""
        made = []
        for name, given in factors.items():
            of_age = {round(float(days) * DAY_MS): math.log(f) for days, f in given.items()} if name == AGE else {}
            of_hash = of_age or {h: math.log(factor) for value, factor in given.items() for h in asked_hashes([value])}
            hashes, logits = self._hashed(name, of_hash), np.array([*of_hash.values(), 0.0])
            at = np.argsort(hashes)
            made.append(Boosts(name, np.append(hashes[at], _NOBODY), logits[np.append(at, len(at))]))
        return made

    def boosted(self, boosts: Iterable[Boosts], rows: ItemRows, ts_ms: int) -> NDArray[np.float64]:
        """The sum of what the values of each item are given, and of its age what the next longer one is. (n,)"""
        out = np.zeros(len(rows))
        for name, hashes, logits in boosts:
            if name == AGE:
                out += logits[np.minimum(np.searchsorted(hashes, self._ages(ts_ms, rows)), len(hashes) - 1)]
                continue
            columns, first, stop = self._columns(name)
            own = columns[rows, first:stop]
            at = np.searchsorted(hashes, own)
            out += np.where(hashes[at] == own, logits[at], 0.0).sum(axis=1)
        return out

    def fitting(self, filters: Filters, rows: ItemRows, size: int) -> NDArray[np.intp]:
        """Ascending positions in ``rows`` (n,) of the first ``size`` that fit on one page under the caps. (<= size,)"""
        if not filters.caps:
            return np.arange(min(size, len(rows)))
        values = np.zeros((len(rows), len(filters.caps)), np.uint64)
        for c, name in enumerate(filters.caps):
            columns, first, _ = self._columns(name)
            values[:, c] = columns[rows, first]
        out = np.empty(size, np.int64)
        n = kernels.capped(values, np.fromiter(filters.caps.values(), np.int64, len(filters.caps)), out)
        return out[:n].astype(np.intp)

    def fillers(
        self,
        filters: Filters,
        allowed: Allowed,
        rows: ItemRows,
        taken: ItemRows,
        first: ListedRows,
        size: int,
        seed: int,
    ) -> ItemRows:
        """Rows that fill a page which the candidates ``rows`` could not fill under the caps. None is in ``rows``, and
        each fits beside the ``taken`` ones. Those of ``first`` come first, then random ones. A short result means that
        no other allowed item fits."""
        left = allowed.mask.copy()
        left[rows] = False
        first = allowed.of(first)  # lists may be newer than the mask, and name rows behind its end
        first = first[left[first]]
        left[first] = False
        others = np.random.default_rng(seed).permutation(np.flatnonzero(left))
        ordered = np.concatenate([taken, first, others])
        chosen = self.fitting(filters, ordered, size)
        return ordered[chosen[chosen >= len(taken)]]

    # -- within -----------------------------------------------------------------------------------------------

    def _by_attributes(self, filters: Filters) -> Allowed:
        items = self._items
        clauses: list[tuple[str, tuple[float, ...], bool]] = [
            (name, _limits(values) if isinstance(values, Range) else tuple(asked_hashes(values)), keep)
            for of, keep in ((filters.only, True), (filters.without, False))
            for name, values in of.items()
            if name != AGE
        ]
        if self._of != items.generation:
            self._masks.clear()
            self._of, self._bytes = items.generation, 0
        key = tuple(sorted(clauses))
        found = self._masks.get(key)
        if found is None:
            mask = items.alive.copy()
            for name, hashes, keep in clauses:
                self._narrow(mask, name, hashes, keep)
            found = _allowed(mask)
            self._keep(key, found)
        else:
            self._masks.move_to_end(key)
        return found

    def _keep(self, key: Any, found: Allowed) -> None:
        self._masks[key] = found
        self._bytes += _size(key, found)
        while self._bytes > MASK_BYTES and len(self._masks) > 1:
            self._bytes -= _size(*self._masks.popitem(last=False))

    def _narrow(self, mask: NDArray[np.bool_], name: str, asked: tuple[Any, ...], keep: bool) -> None:
        if name in self._numbers:
            (low, high), numbers = asked, self._items.rows.plain[: len(mask), self._numbers[name]]
            mask &= ((numbers >= low) & (numbers <= high)) == keep
            return
        kernels.narrow(*self._columns(name), np.sort(self._hashed(name, asked)), keep, mask)

    def _ages(self, ts_ms: int, rows: ItemRows | slice | None = None) -> NDArray[np.float64]:
        """Ages of items, ms; infinite where the birth is not known. (n,)"""
        born_ms = self._items.rows.born_ms[: len(self._items)] if rows is None else self._items.rows.born_ms[rows]
        return np.where(born_ms > 0, np.maximum(ts_ms - born_ms, 0.0), np.inf)

    def _hashed(self, name: str, hashes: Iterable[int]) -> U64:
        """Value hashes as an attribute's columns have them."""
        values = np.array(list(hashes), np.uint64)
        if name == AGE:  # limits in ms
            return values
        place = self._places[name]
        return values if place.named else mix(place.salt, values)

    def _columns(self, name: str) -> tuple[U64, int, int]:
        """Where an attribute's values are: in these columns, from the first to before the last."""
        place = self._places[name]
        if place.named:
            columns = self._items.filter_values(name)
            return columns, 0, columns.shape[1]
        return self._items.rows.cat.view(np.uint64), place.first, place.stop

    def _left_out(self, filters: Filters, user: KnownUser, ts_ms: int) -> list[Id]:
        """Ids of what the request excludes or hides, without what was seen, as of the page's time."""
        recent = user.lately
        pasts = [p for name, some in (("bought", recent.purchases), ("clicked", recent.clicks)) for p in some
                 if name in filters.hide and p.ts_ms < ts_ms]  # fmt: skip
        return [*filters.exclude, *(p.item_id for p in pasts)]

    def _user_hash(self, user: KnownUser) -> U64:
        return user.columns[self._builder.user_column].ravel()[:1]

    def _take_seen(self, mask: NDArray[np.bool_], user: KnownUser, ts_ms: int) -> None:
        seen, items = self._seen, self._items.rows.values
        for one in (user, *user.guests):
            own, keys = self._user_hash(one)[0], self._ranker.seen_keys(one, ts_ms)
            if seen is not None and len(keys):
                kernels.unseen(seen.salt, own, items, seen.column, seen.user_first, kernels.table_of(keys), mask)


def _limits(asked: Range) -> tuple[float, float]:
    """The ends of a range as numbers of items are kept."""
    with np.errstate(over="ignore"):
        low = -np.inf if asked.low is None else float(np.float32(asked.low))
        high = np.inf if asked.high is None else float(np.float32(asked.high))
    return low, high


def _size(key: Any, found: Allowed) -> int:
    """Bytes of a cached mask. In a small shop its filter's hashes are larger than its rows."""
    hashes = sum(len(values) for _, values, _ in key)
    return _ENTRY_BYTES + _HASH_BYTES * hashes + found.mask.nbytes + found.rows.nbytes


def _allowed(mask: NDArray[np.bool_]) -> Allowed:
    return Allowed(mask, np.flatnonzero(mask).astype(np.int32))


def warm_up(ranker: Ranker) -> None:
    """Compiles what a request with filters calls."""
    one, mask, out = np.ones((1, 1), np.uint64), np.ones(1, np.bool_), np.empty(1, np.int64)
    kernels.narrow(one, 0, 1, one[0], True, mask)
    kernels.unseen(one[0, 0], one[0, 0], one, 0, True, kernels.table_of(one[0]), mask)
    kernels.capped(one, np.ones(1, np.int64), out)
    kernels.marginal(np.ones(1), np.ones((1, 1), np.float32), 1.0, 1, np.zeros(1, np.float32))
    filters = ItemFilters(ranker)
    user = KnownUser.of(ranker.builder, 1, {})
    filters.allowed(Filters(exclude=[1]), user, 1)
