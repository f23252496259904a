# core
"""Ranking: features of one user and n items, their scores, the page, and its logged features.

One compiled pass (:mod:`scorer.catalog.pagekernels`) writes the numbers straight into the model's input. Logged
features equal those of :class:`millrace.windows.features.FeatureBuilder` for the same columns and counts bit for bit,
as in replay.

Shapes: n items, F, N, K of the schema's layout, S spans (W windows, then half-lives), A columns of tiles (actions, then
sums), J window keys of the item alone, G numbers that are compared among the m candidates of a page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from learner.network.forward import PageInput
from learner.serving.model_form import NumberPlan
from learner.serving.serving_model import ServingModel
from millrace.basics.errors import StoreError
from millrace.basics.hashing import U64, mix
from millrace.contracts.events import MOST_SESSIONS, Id
from millrace.contracts.online_layout import MOST_RECENT, WINDOW_BYTES, Past, window_fields, window_keys
from millrace.windows import among_kernels
from millrace.windows.affinity import ACTION, clicks_a_day
from millrace.windows.features import FeatureBuilder, steps
from millrace.windows.lastactions import LastActions
from millrace.windows.pagewide import late_columns
from millrace.windows.tiles import TileStore, counts_of
from scorer.catalog import pagekernels
from scorer.catalog.itemtable import ItemRows, ItemTable
from scorer.catalog.pageform import block_size, page_form, shared_places
from scorer.catalog.pagekernels import InputScale, Keyed, Room, SharedInputs
from scorer.recall.candidate_lists import HotGroups
from scorer.users.userrecord import KnownUser

Counts = NDArray[np.integer[Any]]
Numbers = Callable[[NDArray[np.intp]], NDArray[np.float32]]
_SLOTS = 1024
"""Slots whose feature ids are computed in advance."""


class RankingModel(Protocol):
    """The model as ranking needs it: click probabilities, (n,) float32, without side effects."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True)
class Features:
    """Feature arrays of n items, as logged and learnt."""

    cat: NDArray[np.int64]  # (n, F)
    num: NDArray[np.float32]  # (n, N)
    keys: U64  # (n, K)


@dataclass(frozen=True, slots=True)
class Ranked:
    """n candidates with their scores. Feature ids and window keys that depend on the page are missing."""

    cat: NDArray[np.int64]  # (n, F)
    keys: U64  # (n, K)
    scores: NDArray[np.float32]  # (n,)
    outcomes: NDArray[np.float32] | None  # (n, K) the probabilities of the schema's outcomes, where they were asked for
    values: NDArray[np.float32]  # (n, V) the numbers that those are worth that name one; else (0, V)
    among: NDArray[np.float32]  # (G, m) the set that the candidates were measured against
    numbers: Numbers
    """``num`` of some (m,) candidates, (m, N). Raises RuntimeError after the ranker's next page, which reuses the
    memory."""

    @property
    def num(self) -> NDArray[np.float32]:
        return self.numbers(np.arange(len(self.scores)))


class Ranker:
    """Features, scores and pages; reuses its memory from page to page. ``count_error`` receives ``tiles`` for a damaged
    tile list in a user's record."""

    def __init__(
        self, builder: FeatureBuilder, items: ItemTable, count_error: Callable[[str], None] = lambda _: None
    ) -> None:
        self.builder, self.items, self._count_error = builder, items, count_error
        schema, layout = builder.schema, builder.layout
        windows = schema.windows
        self._read = (windows.durations, windows.columns, windows.half_lives, len(windows.means))
        self._form = page_form(builder, items.form)
        worth = [one.value for one in schema.outcome if one.value is not None]
        self._values = np.array([layout.num_names.index(name) for name in worth], np.int64)
        self._actions = LastActions(schema)
        self._of_user = np.flatnonzero([schema.key_side(key) == "user" for key in windows.keys])
        late = late_columns(schema)
        starts = zip(layout.cat_fields, layout.cat_starts, strict=True)
        self._late_fields = [(f, start, layout.field_salt(f)) for f, start in starts if f.name in late]
        self._late_keys = [k for k, key in enumerate(windows.keys) if late & set(key.columns)]
        self._position_alone: NDArray[np.int64] | None = None  # feature ids of slots, where nothing else is late
        if [f.name for f, *_ in self._late_fields] == ["position"] and not self._late_keys:
            hashes = builder.position(np.arange(_SLOTS))
            self._position_alone = mix(self._late_fields[0][2], hashes).view(np.int64)
        self._room = self._new_room(1024)
        self._turn = 0
        self._places = shared_places(builder)
        self._hash_count = max((place.stop for place in self._places.values()), default=0)
        self._plain_at = {f.name: i for i, f in enumerate(layout.plain_fields)}
        of_user = [(f, layout.field_salt(f)) for f in layout.cat_fields if f.of == "user"]
        self._user_fields = [(f.name, f.slots) for f, _ in of_user]
        self._user_salts = np.array([s for f, s in of_user for _ in range(f.slots)], np.uint64)
        self._last: list[tuple[KnownUser, int, Keyed]] = []  # of a request: the user, and what the user was as a guest

    def affinities(
        self, groups: tuple[HotGroups, ...], user: KnownUser, ts_ms: int
    ) -> list[tuple[HotGroups, NDArray[np.float64]]]:
        """A user's affinity to each group (:mod:`millrace.windows.affinity`), also as guest. (G,) for each grouping"""
        found = [self._affinities(groups, one, ts_ms) for one in (user, *user.guests)]
        return [
            (of[0][0], np.sum([values for _, values in of], axis=0)) for of in zip(*filter(None, found), strict=True)
        ]

    def _affinities(
        self, groups: tuple[HotGroups, ...], user: KnownUser, ts_ms: int
    ) -> list[tuple[HotGroups, NDArray[np.float64]]]:
        windows = self.builder.schema.windows
        held = self._held(user, ts_ms)
        if len(held.keys) == 1 or ACTION not in windows.actions:
            return []
        affinity = clicks_a_day(held.counts, windows)
        out = []
        for grouping in groups:
            salt, own = self._form.salts[grouping.key], grouping.of_item
            values = np.where(own >= 0, own, self._form.values[grouping.key, : len(own)])[None]
            found = np.empty(len(grouping.example))
            pagekernels.affinities(salt, self._hashes(user.columns), values, grouping.parts, held, affinity, found)
            out.append((grouping, found))
        return out

    def seen_keys(self, user: KnownUser, ts_ms: int) -> U64:
        """The window keys in a user's record that have exposures in the longest window. (k,)"""
        held = self._held(user, ts_ms)
        seen: U64 = held.keys[held.counts[:, self._form.block.windows - 1, 0] > 0]
        return seen

    def user_ids(self, user: KnownUser) -> NDArray[np.int64]:
        """Feature ids of the user's own fields in the layout's order, 0 where one is missing. (k,)"""
        hashes, at = np.zeros(len(self._user_salts), np.uint64), 0
        for name, slots in self._user_fields:
            column = user.columns.get(name)
            if column is not None:
                values = column.ravel()[:slots]
                hashes[at : at + len(values)] = values
            at += slots
        return mix(self._user_salts, hashes).view(np.int64)  # type: ignore[arg-type]

    def rank(
        self,
        user: KnownUser,
        rows: ItemRows,
        ts_ms: int,
        context: Mapping[str, Any] | None,
        model: RankingModel,
        counts: Counts | None = None,
        among: NDArray[np.float32] | None = None,
        outcomes: bool = False,
    ) -> Ranked:
        """Features and scores of the items at ``rows`` for ``user`` at ``ts_ms``.

        Args:
            counts: (n, J, S, A) of the items' own window keys for a time far from now
                (:meth:`scorer.catalog.item_index.ItemIndex.counts_at`); default: the item table's.
            among: (G, m) the set of another page, to measure these items against; default: they are the set.
            outcomes: whether the probabilities of outcomes are wanted, too, if the model predicts them.
        """
        n = len(rows)
        cat, keys = self._make(user, rows, ts_ms, context, counts)
        values = pagekernels.picked(self._room, self.builder.compared, n)
        if among is None:
            among = among_kernels.ascending(values)
        among_kernels.measure(values, among, self.builder.comparisons, self._room.among)
        numbers = self._numbers()
        p = self._probabilities(model, cat, numbers, outcomes)
        told = p[:, 1:] if outcomes and hasattr(model, "predict") else None
        worth = pagekernels.picked(self._room, self._values, n if told is not None else 0)
        return Ranked(cat, keys, np.ascontiguousarray(p[:, 0]), told, worth, among, numbers)

    def _probabilities(
        self, model: RankingModel, cat: NDArray[np.int64], numbers: Numbers, outcomes: bool
    ) -> NDArray[np.float32]:
        """Of a click, and of the ``outcomes`` if they are wanted and predicted: (n, 1) or (n, 1 + K)."""
        plan = cast(NumberPlan | None, getattr(model, "numbers", None))
        if plan is None or len(plan.columns) != self.builder.layout.N:  # not all numbers are fed, or not as numbers
            predict = getattr(model, "predict", None) if outcomes else None
            p: NDArray[np.float32] = (predict or model.score)(cat, numbers(np.arange(len(cat))))
        else:
            p = cast(ServingModel, model).score_page(cat, self._feed, outcomes)
        return p[:, None] if p.ndim == 1 else p

    def _feed(self, plan: NumberPlan, given: PageInput) -> None:
        how = InputScale(plan.log, plan.mean, plan.factor, np.float32(plan.bound), plan.place)
        pagekernels.feed(self._form, how, self._room, given.n, given.own, given.same[0])

    def set_of(
        self,
        user: KnownUser,
        rows: ItemRows,
        ts_ms: int,
        context: Mapping[str, Any] | None,
        counts: Counts | None = None,
    ) -> NDArray[np.float32]:
        """The items at ``rows`` as the set that others are measured against (:meth:`rank`), without scores. (G, m)"""
        self._make(user, rows, ts_ms, context, counts)
        self._turn += 1
        return among_kernels.ascending(pagekernels.picked(self._room, self.builder.compared, len(rows)))

    def placed(
        self,
        ranked: Ranked,
        order: NDArray[np.intp],
        user: KnownUser,
        rows: ItemRows,
        ts_ms: int,
        context: Mapping[str, Any] | None = None,
        offset: int = 0,
    ) -> Features:
        """Features of the page ``order`` (positions in ``ranked``, which was made of the index ``rows``), now with
        slots from ``offset`` on and whatever depends on them. The numbers stay those that were scored."""
        cat, keys = ranked.cat[order], ranked.keys[order]
        end = offset + len(order)
        if self._position_alone is not None and end <= _SLOTS:  # nearly always, and quick
            cat[:, self._late_fields[0][1]] = self._position_alone[offset:end]
        else:
            columns = {**user.columns, **self._context(context, ts_ms)[0]}
            columns["position"] = self.builder.position(np.arange(offset, end))
            self._fill_late(cat, keys, columns, rows[order])
        return Features(cat, ranked.numbers(order), keys)

    def as_if_clicked(
        self, user: KnownUser, ids: Sequence[Id], rows: ItemRows, ts_ms: int, context: Mapping[str, Any] | None
    ) -> KnownUser:
        """The user as clicks on the items ``ids``, which are at ``rows``, just before ``ts_ms`` would leave the store's
        record: the counts of the user's window keys, but for those of a slot, and the last clicks. Changes nothing
        here; a damaged tile list begins anew."""
        _, keys = self._make(user, rows, ts_ms, context, None)
        self._turn += 1
        windows, clicked_ms = self.builder.schema.windows, np.full(len(rows), ts_ms - 1)
        keys = np.ascontiguousarray(keys[:, self._of_user])
        mine = np.unique(keys[keys != 0])
        store, fields, tiles = TileStore.of(windows), window_fields(mine), dict(user.tiles)
        for key, field in zip(mine, fields, strict=True):
            with suppress(StoreError):
                store.put(key[None], [tiles.get(field, b"")])
        adds = [(windows.actions.index(ACTION), np.ones(len(rows), np.uint32))] if ACTION in windows.actions else []
        for column, mean in enumerate(windows.means, len(windows.actions)):
            if mean.action == ACTION:
                adds.append((column, steps(self._room.plain[: len(rows), self._plain_at[mean.of]], mean.step)[0]))
        for column, amounts in adds:
            store.add(keys, clicked_ms, np.full(len(rows), column), amounts)
        tiles |= dict(zip(fields, store.export(mine), strict=True))
        clicks = [*(Past(item, ts_ms - 1) for item in ids), *user.recent.clicks][:MOST_RECENT]
        return replace(user, tiles=tiles, recent=user.recent._replace(clicks=clicks))

    # -- within -----------------------------------------------------------------------------------------------

    def _fill_late(self, cat: NDArray[np.int64], keys: U64, columns: dict[str, U64], rows: ItemRows) -> None:
        """Fills fields and keys that were missing during ranking."""
        items = self.items
        for field, start, salt in self._late_fields:
            column = columns.get(field.name)
            if field.of == "item":
                of_item = np.flatnonzero(np.isin(items.form.cat_columns, np.arange(start, start + field.slots)))
                cat[:, start : start + field.slots] = items.rows.cat[rows][:, of_item]
            elif column is not None:
                wide = column if column.ndim == 2 else column[:, None]
                cat[:, start : start + wide.shape[1]] = mix(salt, wide).view(np.int64)
        if self._late_keys:
            columns |= dict(zip(items.form.value_names, items.rows.values[rows].T, strict=True))
            keys[:, self._late_keys] = self.builder.keys(columns, len(rows))[:, self._late_keys]

    def _make(
        self, user: KnownUser, rows: ItemRows, ts_ms: int, context: Mapping[str, Any] | None, counts: Counts | None
    ) -> tuple[NDArray[np.int64], U64]:
        n, layout = len(rows), self.builder.layout
        if n > len(self._room.plain):
            self._room = self._new_room(2 * n)
        cat, keys = np.empty((n, layout.F), np.int64), np.empty((n, layout.K), np.uint64)
        slots = self.items.slots
        exact = slots.counts[:0]
        if counts is not None:
            if counts.shape[:2] != (n, len(self.items.form.own_keys)):
                raise ValueError(f"counts {counts.shape} of {n} items with {len(self.items.form.own_keys)} keys each")
            exact = np.require(counts, exact.dtype, ["C", "W"]).reshape(-1, *exact.shape[1:])
        pagekernels.make(
            self._form,
            self._shared(user, ts_ms, context),
            self.items.rows,
            slots,
            self._held_by_all(user, rows, ts_ms, context),
            exact,
            np.require(rows, np.intp, ["C", "W"]),
            self._room,
            cat,
            keys,
        )
        return cat, keys

    def _numbers(self) -> Numbers:
        self._turn += 1
        turn, width = self._turn, self.builder.layout.N

        def numbers(some: NDArray[np.intp]) -> NDArray[np.float32]:
            if turn != self._turn:
                raise RuntimeError("the numbers of a page were asked for after another page was ranked")
            out = np.empty((len(some), width), np.float32)
            pagekernels.numbers(self._room, np.require(some, np.intp, ["C", "W"]), out)
            return out

        return numbers

    def _context(self, context: Mapping[str, Any] | None, ts_ms: int) -> tuple[dict[str, U64], dict[str, float]]:
        """Columns (1,) and numbers of the request."""
        named, numbers = self.builder.attributes("context", context or {})
        return {**named, **self.builder.context(np.array([ts_ms], np.int64))}, numbers

    def _shared(self, user: KnownUser, ts_ms: int, context: Mapping[str, Any] | None) -> SharedInputs:
        layout = self.builder.layout
        named, numbers = self._context(context, ts_ms)
        plain = np.zeros(layout.window_start)
        for name, value in {**user.plain, **numbers}.items():
            plain[self._plain_at[name]] = value
        return SharedInputs(
            hashes=self._hashes({**user.columns, **named, **self._actions.of(user.lately, ts_ms)}),
            plain=plain,
            fade=self.builder.fade(ts_ms).ravel(),
            ts_ms=ts_ms,
        )

    def _hashes(self, columns: Mapping[str, U64]) -> U64:
        """Value hashes that all rows share, concatenated."""
        out = np.zeros(self._hash_count, np.uint64)
        for name, place in self._places.items():
            column = columns.get(name)
            if column is not None:
                out[place] = column.ravel()
        return out

    def _held(self, user: KnownUser, ts_ms: int) -> Keyed:
        """Counts of all window keys in the user's record, read once a request."""
        for whose, at_ms, held in self._last:
            if whose is user and at_ms == ts_ms:
                return held
        fields = [field for field in user.tiles if len(field) == WINDOW_BYTES]
        keys = np.concatenate([np.zeros(1, np.uint64), window_keys(fields)])
        held = _keyed(keys, self._counts([None, *(user.tiles[field] for field in fields)], ts_ms))
        self._last = [*self._last[-MOST_SESSIONS:], (user, ts_ms, held)]
        return held

    def _held_by_all(self, user: KnownUser, rows: ItemRows, ts_ms: int, context: Mapping[str, Any] | None) -> Keyed:
        """:meth:`_held` with what was counted for these items while the user was a guest. A key is a hash, so the
        guest's are found by making them again; sums of counts are the counts of all."""
        held = self._held(user, ts_ms)
        if not user.guests:
            return held
        form, values = self.items.form, self.items.rows.values[rows].T
        shared = {**self._context(context, ts_ms)[0], **dict(zip(form.value_names, values, strict=True))}
        own = self.builder.keys({**shared, **user.columns}, len(rows)).ravel()
        for guest in user.guests:
            also = self._held(guest, ts_ms)
            theirs = self.builder.keys({**shared, **guest.columns}, len(rows)).ravel()
            both = np.flatnonzero((own != 0) & (own != theirs) & np.isin(theirs, also.keys[1:]))
            new, first = np.unique(own[both], return_index=True)
            keys = np.union1d(held.keys, new)  # 0 comes first
            counts = np.zeros((len(keys), *held.counts.shape[1:]), held.counts.dtype)
            counts[np.searchsorted(keys, held.keys)] = held.counts
            order = np.argsort(also.keys)
            rows_of = order[np.searchsorted(also.keys, theirs[both][first], sorter=order)]
            counts[np.searchsorted(keys, new)] += also.counts[rows_of]
            held = _keyed(keys, counts)
        return held

    def _counts(self, blobs: list[bytes | None], ts_ms: int) -> Counts:
        try:
            return counts_of(blobs, ts_ms, *self._read)
        except StoreError:  # rare: find the damaged one, and do without it
            out = counts_of([None] * len(blobs), ts_ms, *self._read)
            for i, blob in enumerate(blobs):
                try:
                    out[i] = counts_of([blob], ts_ms, *self._read)[0]
                except StoreError:
                    self._count_error("tiles")
            return out

    def _new_room(self, n: int) -> Room:
        keys, block = self.builder.layout.K, block_size(self.builder.schema.windows)
        blocks = 1 + keys * n
        return Room(
            raw=np.zeros((blocks, block), np.float32),
            fed=np.zeros((blocks, block), np.float32),
            keys=np.zeros(blocks, np.uint64),
            above=np.zeros(blocks, np.int32),
            where=np.zeros((keys, n), np.int32),
            first=np.zeros(2 * keys + 1, np.int64),
            plain=np.zeros((n, self.builder.layout.window_start), np.float32),
            among=np.zeros((n, len(self.builder.comparisons)), np.float32),
            table=np.zeros(1 << (2 * n).bit_length(), np.int32),
        )


def _keyed(keys: U64, counts: Counts) -> Keyed:
    """Counts by key; the first key is none."""
    table = np.zeros(1 << (2 * len(keys)).bit_length(), np.int32)
    pagekernels.enter(keys, table, np.arange(1, len(keys), dtype=np.int32))
    return Keyed(keys, counts, table)
